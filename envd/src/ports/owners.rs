//! Which program listens: found by a walk through `/proc`, which is done only for a listener that is new.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// Descriptors looked at in one walk: a guest may have any number.
const MOST: usize = 64 * 1024;
/// Characters of a name; the kernel keeps 15 bytes.
const LONGEST: usize = 64;

/// The command names of those who hold these sockets. Of several the one with the lowest pid: a server is older than
/// its workers.
pub fn owners(wanted: &HashSet<u64>) -> HashMap<u64, String> {
    let mut found = HashMap::new();
    let mut budget = MOST;
    let mut pids: Vec<u32> = entries(Path::new("/proc")).filter_map(|it| it.parse().ok()).collect();
    pids.sort_unstable();
    for pid in pids {
        let process = Path::new("/proc").join(pid.to_string());
        let descriptors = process.join("fd");
        for descriptor in entries(&descriptors) {
            budget = budget.saturating_sub(1);
            if budget == 0 || found.len() == wanted.len() {
                return found;
            }
            let target = fs::read_link(descriptors.join(descriptor)).ok();
            let inode = target.as_deref().and_then(Path::to_str).and_then(socket);
            if let Some(inode) = inode.filter(|it| wanted.contains(it) && !found.contains_key(it))
                && let Some(name) = name(&process)
            {
                found.insert(inode, name);
            }
        }
    }
    found
}

/// The names in a directory; none if it is gone.
fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|it| it.file_name().into_string().ok())
}

/// `socket:[4711]`
fn socket(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A program can give itself any name: only what can be shown on a line is left of it.
fn name(process: &Path) -> Option<String> {
    let bytes = fs::read(process.join("comm")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let name: String = text.trim_end().chars().filter(|it| !it.is_control()).take(LONGEST).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_holder_of_a_socket_is_found() {
        let socket_of = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let link = fs::read_link(format!("/proc/self/fd/{}", socket_of.as_raw_fd())).expect("a link");
        let inode = socket(link.to_str().expect("text")).expect("a socket");
        let found = owners(&HashSet::from([inode]));
        let own = fs::read_to_string("/proc/self/comm").expect("comm");
        assert_eq!(found.get(&inode).map(String::as_str), Some(own.trim_end()));
    }
}
