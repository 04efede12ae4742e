//! What `/proc` says about processes.

use std::fs;
use std::path::Path;

/// Every process there is.
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The kernel's short name of the process.
pub fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// Arguments joined by blanks; empty for a process that is gone or a zombie.
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// Whether the process has ended but was not waited for by its parent yet.
pub fn is_zombie(pid: u32) -> bool {
    stat_fields(pid).is_some_and(|fields| fields.first().is_some_and(|state| state == "Z"))
}

/// Start of the process in clock ticks since boot: with the pid it names a process for ever.
pub fn start_time(pid: u32) -> Option<u64> {
    // Field 22 of proc(5), counted from 1; the fields here begin with the third.
    stat_fields(pid)?.get(19)?.parse().ok()
}

/// The fields of `/proc/PID/stat` after the name, which may itself hold blanks and brackets.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Resident memory in KiB.
pub fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// What the process has of memory for itself: pages of no file, its own heap and its own copies, in KiB.
pub fn own_kib(pid: u32) -> Option<u64> {
    rollup_kib(pid, "Anonymous:")
}

/// Its part of all pages that it has, each divided by how many processes have it, in KiB.
pub fn proportional_kib(pid: u32) -> Option<u64> {
    rollup_kib(pid, "Pss:")
}

/// A line of `smaps_rollup` (proc_pid_smaps(5)).
fn rollup_kib(pid: u32, field: &str) -> Option<u64> {
    let sums = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    sums.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

/// Whether the process has anything to do with `needle`: in its arguments, its environment, its open
/// files, its mappings, or as the directory it works in.
pub fn mentions(pid: u32, needle: &str) -> bool {
    let within = |file: &str| {
        fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(needle))
    };
    let linked = |path: &Path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(needle));
    within("cmdline")
        || within("environ")
        || linked(Path::new(&format!("/proc/{pid}/cwd")))
        || fs::read_dir(format!("/proc/{pid}/fd"))
            .is_ok_and(|entries| entries.flatten().any(|entry| linked(&entry.path())))
        || within("maps")
}

/// Whether a part of a file system that is called so is mounted where the process is.
pub fn mounts(pid: u32, needle: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|mounts| mounts.contains(needle))
}

/// Every living process that has to do with `needle`, but the one that asks.
pub fn processes_of(needle: &str) -> Vec<u32> {
    let own = std::process::id();
    pids().into_iter().filter(|pid| *pid != own && !is_zombie(*pid) && mentions(*pid, needle)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_process() {
        let own = std::process::id();
        assert!(pids().contains(&own));
        assert!(resident_kib(own).is_some_and(|kib| kib > 0));
        assert!(own_kib(own).is_some_and(|kib| kib > 0));
        assert!(proportional_kib(own).is_some_and(|kib| kib > 0));
        assert!(start_time(own).is_some());
        assert!(!is_zombie(own));
        assert!(!command_line(own).is_empty());
    }

    #[test]
    fn finds_a_process_by_its_arguments() {
        let mut child = std::process::Command::new("sleep").arg("61.125").spawn().expect("sleep");
        // It may be seen a moment before it has become the program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !processes_of("61.125").contains(&child.id()) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(processes_of("61.125").contains(&child.id()));
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(!processes_of("61.125").contains(&child.id()));
    }
}
