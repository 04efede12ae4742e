//! What a snapshot depends on and what it is compared with before anything starts.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MachineConfig {
    pub vcpus: u32,
    pub memory_mib: u32,
}

impl MachineConfig {
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }
}

/// A kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelImage {
    /// Of the kernel with its initrd; whatever is stored under it never changes.
    pub version: String,
    pub vmlinux: PathBuf,
    pub initrd: PathBuf,
}

/// All that must agree between where a snapshot was taken and where it is restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmIdentity {
    /// `qemu` or `firecracker`
    pub driver: String,
    /// The VMM program's own version.
    pub version: String,
    /// `tcg` or `kvm`
    pub accelerator: String,
    pub cpu_model: String,
    /// Grows when the driver changes the machine's devices.
    pub device_layout: u32,
    pub kernel: String,
    /// Rate of the time-stamp counter. Guest time runs wrong by as much as this differs.
    pub tsc_khz: u64,
}

/// Two measurements of one counter differ by a few parts per million; NTP corrects up to 500.
const TSC_TOLERANCE_PPM: u64 = 200;

/// Names each thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it was taken elsewhere: {}", .0.join(", "))]
pub struct IdentityMismatch(pub Vec<String>);

impl VmmIdentity {
    /// As `qemu-tcg`.
    pub fn label(&self) -> String {
        format!("{}-{}", self.driver, self.accelerator)
    }

    /// Everything but what is measured.
    pub(crate) fn fixed_parts(&self) -> [String; 6] {
        let Self { driver, version, accelerator, cpu_model, device_layout, kernel, tsc_khz: _ } =
            self.clone();
        [driver, version, accelerator, cpu_model, device_layout.to_string(), kernel]
    }

    /// `self` is the snapshot's, `host` that of the driver which is to restore it.
    pub fn check_restorable_on(&self, host: &Self) -> Result<(), IdentityMismatch> {
        const NAMES: [&str; 6] =
            ["VMM", "VMM version", "accelerator", "CPU model", "device layout", "kernel"];
        let mut differences: Vec<String> = NAMES
            .iter()
            .zip(self.fixed_parts())
            .zip(host.fixed_parts())
            .filter(|((_, theirs), ours)| theirs != ours)
            .map(|((name, theirs), ours)| format!("{name} {theirs} (here {ours})"))
            .collect();
        let tolerance = host.tsc_khz * TSC_TOLERANCE_PPM / 1_000_000;
        if self.tsc_khz.abs_diff(host.tsc_khz) > tolerance {
            differences.push(format!("TSC of {} kHz (here {} kHz)", self.tsc_khz, host.tsc_khz));
        }
        if differences.is_empty() { Ok(()) } else { Err(IdentityMismatch(differences)) }
    }
}

impl fmt::Display for VmmIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { driver, version, accelerator, cpu_model, device_layout, kernel, tsc_khz } = self;
        write!(f, "{driver} {version} ({accelerator}, {cpu_model}, layout {device_layout}, ")?;
        write!(f, "kernel {kernel}, TSC {tsc_khz} kHz)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> VmmIdentity {
        VmmIdentity {
            driver: "qemu".into(),
            version: "7.2.22".into(),
            accelerator: "tcg".into(),
            cpu_model: "qemu64".into(),
            device_layout: 1,
            kernel: "6.1.0".into(),
            tsc_khz: 2_600_000,
        }
    }

    #[test]
    fn a_foreign_snapshot_is_refused_naming_what_differs() {
        let host = identity();
        assert_eq!(host.check_restorable_on(&host), Ok(()));
        let other = VmmIdentity { version: "10.0.2".into(), kernel: "6.12.0".into(), ..identity() };
        let message = other.check_restorable_on(&host).unwrap_err().to_string();
        assert_eq!(
            message,
            "it was taken elsewhere: VMM version 10.0.2 (here 7.2.22), kernel 6.12.0 (here 6.1.0)"
        );
    }

    #[test]
    fn a_measurement_may_differ_a_little() {
        let host = identity();
        assert_eq!(VmmIdentity { tsc_khz: 2_600_500, ..identity() }.check_restorable_on(&host), Ok(()));
        assert!(VmmIdentity { tsc_khz: 2_601_000, ..identity() }.check_restorable_on(&host).is_err());
    }
}
