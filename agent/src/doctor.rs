//! What this host will be used with, why, and what is missing.

use std::fmt::Write as _;

use wrenn_vmm::host::{HostOptions, HostReport};
use wrenn_vmm::paths::{HostPaths, PathError};

use crate::config::Config;

/// The outcome of looking.
pub struct Diagnosis {
    /// For a person to read.
    pub text: String,
    /// Whether an agent could serve here.
    pub usable: bool,
}

/// Looks at the host; changes nothing.
pub async fn diagnose(config: &Config) -> Result<Diagnosis, PathError> {
    let paths = HostPaths::new(&config.dir)?;
    let options = HostOptions {
        vmm: config.vmm,
        kvm: config.kvm,
        firecracker_binary: config.firecracker_binary.clone(),
        restore: config.restore,
        disk_store: config.disk_store,
        cgroups: config.cgroups.policy,
    };
    let report = HostReport::inspect(&paths, &options).await;
    let mut text = report.to_string();
    let _ = writeln!(
        text,
        "{:<8} {:<8} slots: {} for capsules, {} kept ready",
        "ok",
        "network",
        config.slots.len(),
        config.slot_pool
    );
    Ok(Diagnosis { text, usable: report.is_usable() })
}
