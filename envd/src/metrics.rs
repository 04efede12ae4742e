//! What the guest knows of its own load, read from `/proc` when it is asked for.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{SysconfVar, sysconf};
use wrenn_proto::envd::v1::MetricsResponse;

/// Ticks of `/proc/stat` in a second, where the kernel does not say.
const USUAL_TICKS: u64 = 100;

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot read {path}")]
    Read {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{path} does not tell `{what}`")]
    Missing { path: &'static str, what: &'static str },
    #[error("cannot measure the root file system")]
    Disk(#[source] nix::Error),
}

/// Reads all of it.
///
/// # Errors
/// `/proc` is not there, or not as it should be.
pub fn metrics() -> Result<MetricsResponse, MetricsError> {
    let stat = read("/proc/stat")?;
    let memory = read("/proc/meminfo")?;
    let load = read("/proc/loadavg")?;
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|it| u64::try_from(it).ok());
    let tick_ns = 1_000_000_000 / ticks.filter(|&it| it > 0).unwrap_or(USUAL_TICKS);
    let missing = |path, what| MetricsError::Missing { path, what };
    let memory_of = |what| kibibytes(&memory, what).ok_or(missing("/proc/meminfo", what));
    let disk = Disk::of(Path::new("/")).map_err(MetricsError::Disk)?;
    Ok(MetricsResponse {
        cpu_used_ns: cpu_ticks(&stat).ok_or(missing("/proc/stat", "cpu"))?.saturating_mul(tick_ns),
        cpus: cpus(&stat),
        memory_total_bytes: memory_of("MemTotal")?,
        memory_available_bytes: memory_of("MemAvailable")?,
        disk_total_bytes: disk.total,
        disk_used_bytes: disk.used,
        load_1m: load.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or_default(),
    })
}

/// The size of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub total: u64,
    pub used: u64,
}

impl Disk {
    /// # Errors
    /// The kernel refused.
    pub fn of(path: &Path) -> nix::Result<Self> {
        let it = statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(it.fragment_size());
        Ok(Self { total: bytes(it.blocks()), used: bytes(it.blocks().saturating_sub(it.blocks_free())) })
    }
}

fn read(path: &'static str) -> Result<String, MetricsError> {
    std::fs::read_to_string(path).map_err(|source| MetricsError::Read { path, source })
}

/// The ticks in which any vCPU did something: user, nice, system, irq and softirq. Not idle, nor waiting for a disk,
/// nor stolen by the host; time of guests within the guest is in user already.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.lines().find_map(|it| it.strip_prefix("cpu "))?.split_whitespace();
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _waiting) = (next()?, next()?);
    let (irq, softirq) = (next()?, next()?);
    Some([user, nice, system, irq, softirq].into_iter().fold(0, u64::saturating_add))
}

fn cpus(stat: &str) -> u32 {
    let rows = stat.lines().filter(|it| {
        it.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
    });
    u32::try_from(rows.count()).unwrap_or(u32::MAX)
}

/// A row of `/proc/meminfo`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let row = text.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(':'))?;
    row.split_whitespace().next()?.parse::<u64>().ok().map(|it| it.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_understood() {
        let stat =
            "cpu  10 20 30 4000 500 6 7 80 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\ncpu1 1 2 3 4 5 6 7 8 9 0\nintr 5\n";
        assert_eq!(cpu_ticks(stat), Some(10 + 20 + 30 + 6 + 7));
        assert_eq!(cpus(stat), 2);
        let memory = "MemTotal:         250 kB\nMemFree: 1 kB\nMemAvailable:      120 kB\n";
        assert_eq!(kibibytes(memory, "MemTotal"), Some(250 * 1024));
        assert_eq!(kibibytes(memory, "MemAvailable"), Some(120 * 1024));
        assert_eq!(kibibytes(memory, "Mem"), None);
        assert_eq!(cpu_ticks("cpu  1 2\n"), None);
    }
}
