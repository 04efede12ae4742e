//! What the kernel says of a VMM.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use nix::unistd::{SysconfVar, sysconf};
use wrenn_vmm::paths::layers_of_disk;

/// Bytes of a block in `st_blocks`, whatever the file system's own are: stat(2).
const BLOCK: u64 = 512;

/// CPU time that a process has used in all its threads, and its resident memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Duration,
    pub memory_bytes: u64,
}

/// From `/proc/PID/stat`, which has both and costs one file.
pub fn usage(pid: i32) -> io::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// What a disk really takes, without a base beside it; a hole takes nothing, what is shared with other files counts whole.
pub fn allocated(disk: &Path) -> io::Result<u64> {
    let files = layers_of_disk(disk)?.into_iter().chain([disk.to_owned()]);
    files.map(|file| Ok(fs::metadata(file)?.blocks() * BLOCK)).sum()
}

/// Fields 14, 15 and 24 of proc(5). The name, in parentheses, may hold anything.
fn parse(stat: &str) -> Option<Usage> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(of_system(SysconfVar::CLK_TCK, 100));
    Some(Usage {
        cpu: Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)),
        memory_bytes: field(24)? * of_system(SysconfVar::PAGE_SIZE, 4096),
    })
}

fn of_system(what: SysconfVar, usual: u64) -> u64 {
    sysconf(what)
        .ok()
        .flatten()
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
        .unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_memory_are_found_past_any_name() {
        let fields: Vec<String> = (4..52).map(|n| n.to_string()).collect();
        let stat = format!("42 (a) b) S {}\n", fields.join(" "));
        let usage = parse(&stat).unwrap();
        assert_eq!(usage.cpu, Duration::from_millis((14 + 15) * 10));
        assert_eq!(usage.memory_bytes, 24 * 4096);
        assert_eq!(parse("42 (cut"), None);
    }

    #[test]
    fn this_process_has_some_of_both() {
        let busy = std::time::Instant::now();
        while busy.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        let usage = usage(std::process::id() as i32).unwrap();
        assert!(usage.cpu > Duration::ZERO && usage.memory_bytes > 1 << 20, "{usage:?}");
    }

    #[test]
    fn a_hole_takes_nothing_and_what_was_changed_in_earlier_lives_counts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk.ext4");
        fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();
        assert!(allocated(&disk).unwrap() < 1 << 20);
        for other in ["disk.ext4.1", "disk.ext4.2", "disk.ext4.base"] {
            fs::write(dir.path().join(other), vec![1; 1 << 20]).unwrap();
        }
        let allocated = allocated(&disk).unwrap();
        assert!((2 << 20..3 << 20).contains(&allocated), "{allocated}");
    }
}
