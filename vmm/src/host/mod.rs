//! What this host offers, what of it will be used and why, and what is missing: `doctor`'s knowledge.

mod inspect;

use std::{fmt, path::PathBuf};

use crate::{
    disk::DiskStoreChoice, driver::VmmChoice, firecracker::RestoreChoice, kvm::KvmPolicy, paths::HostPaths,
    process::cgroup::CgroupPolicy,
};

/// What the operator has decided already.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    pub vmm: VmmChoice,
    pub kvm: KvmPolicy,
    /// From the search path if unset.
    pub firecracker_binary: Option<PathBuf>,
    pub restore: RestoreChoice,
    pub disk_store: DiskStoreChoice,
    pub cgroups: CgroupPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    Vmm,
    Kernel,
    Disk,
    Network,
    Limits,
    Tools,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vmm => "VMM",
            Self::Kernel => "kernel",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Limits => "limits",
            Self::Tools => "tools",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// Machines run, but not as well as they could.
    Warning,
    /// No machine can run.
    Missing,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub area: Area,
    pub status: Status,
    /// What will be used, or what is missing.
    pub what: String,
    pub why: String,
    /// The command that puts it right.
    pub fix: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { area, status, what, why, fix } = self;
        write!(f, "{status:<8} {area:<8} {what}: {why}")?;
        match fix {
            Some(fix) => write!(f, "\n{:18}→ {fix}", ""),
            None => Ok(()),
        }
    }
}

/// All findings, in the order they matter.
#[derive(Clone, Debug)]
pub struct HostReport {
    pub findings: Vec<Finding>,
}

impl HostReport {
    /// Looks, and changes nothing.
    pub async fn inspect(paths: &HostPaths, options: &HostOptions) -> Self {
        let (paths, options) = (paths.clone(), options.clone());
        let findings = crate::failure::blocking(move || inspect::all(&paths, &options)).await;
        Self { findings }
    }

    /// Whether machines can run here.
    pub fn is_usable(&self) -> bool {
        self.findings.iter().all(|finding| finding.status != Status::Missing)
    }
}

impl fmt::Display for HostReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        Ok(())
    }
}
