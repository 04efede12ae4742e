//! What this machine offers, and what of it is free at the moment.

use std::path::PathBuf;

use nix::sys::statvfs::statvfs;

/// What the control plane is told with every heartbeat.
#[derive(Debug, Clone)]
pub struct HostSpecs {
    pub arch: &'static str,
    pub cpus: u32,
    pub memory_mib: u64,
    pub memory_available_mib: u64,
    pub disk_mib: u64,
    pub disk_available_mib: u64,
    /// As `qemu/tcg 7.2.22`.
    pub vmm: String,
    /// As `reflink`.
    pub disk_store: String,
}

/// Memory of the machine, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total_mib: u64,
    /// What could be had without swapping.
    pub available_mib: u64,
}

/// Looks at the machine whenever asked.
#[derive(Debug)]
pub struct HostProbe {
    /// The file systems that capsules' disks and memory lie in: one may be a sparse file on the other.
    pub rooms: Vec<PathBuf>,
    pub vmm: String,
    pub disk_store: String,
}

impl HostProbe {
    pub fn specs(&self) -> HostSpecs {
        let memory = memory();
        let (disk_mib, disk_available_mib) = self.disk();
        HostSpecs {
            arch: std::env::consts::ARCH,
            cpus: cpus(),
            memory_mib: memory.total_mib,
            memory_available_mib: memory.available_mib,
            disk_mib,
            disk_available_mib,
            vmm: self.vmm.clone(),
            disk_store: self.disk_store.clone(),
        }
    }

    /// Size and free space in MiB, of the tightest room; zeros when none can be asked.
    pub fn disk(&self) -> (u64, u64) {
        let rooms = self.rooms.iter().filter_map(|room| statvfs(room).ok()).map(|fs| {
            let unit = fs.fragment_size();
            ((fs.blocks() * unit) >> 20, (fs.blocks_available() * unit) >> 20)
        });
        rooms.reduce(|one, other| (one.0.min(other.0), one.1.min(other.1))).unwrap_or_default()
    }
}

/// Logical CPUs this process may use.
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// From `/proc/meminfo`; zeros when it cannot be read.
pub fn memory() -> Memory {
    parse_meminfo(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse_meminfo(text: &str) -> Memory {
    let mib = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib >> 10)
    };
    Memory { total_mib: mib("MemTotal:"), available_mib: mib("MemAvailable:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_mib() {
        let text = "MemTotal:       24684544 kB\nMemFree:         100 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(parse_meminfo(text), Memory { total_mib: 24106, available_mib: 2 });
        assert_eq!(parse_meminfo(""), Memory { total_mib: 0, available_mib: 0 });
    }
}
