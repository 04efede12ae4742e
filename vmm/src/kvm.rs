//! Whether hardware virtualisation can really be used. That `/dev/kvm` is there is not an answer: where
//! KVM itself is emulated every call succeeds and an unmodified guest dies minutes later.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::failure::{Doing as _, Failure};

/// What the operator says about KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvmPolicy {
    /// Use it if the check finds it usable.
    #[default]
    Auto,
    /// Use it whatever the check finds.
    Force,
    /// Never use it.
    Off,
}

/// The text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a KVM policy: auto, force or off")]
pub struct InvalidPolicy(String);

impl FromStr for KvmPolicy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        match text {
            "auto" => Ok(Self::Auto),
            "force" => Ok(Self::Force),
            "off" => Ok(Self::Off),
            _ => Err(InvalidPolicy(text.to_owned())),
        }
    }
}

/// What was found, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmCheck {
    pub usable: bool,
    /// One for each thing looked at.
    pub reasons: Vec<String>,
}

impl KvmCheck {
    pub fn run(policy: KvmPolicy) -> Self {
        Self::run_in(Path::new("/"), policy)
    }

    fn run_in(root: &Path, policy: KvmPolicy) -> Self {
        match policy {
            KvmPolicy::Off => {
                return Self { usable: false, reasons: vec!["switched off (WRENN_KVM=off)".to_owned()] };
            }
            KvmPolicy::Force => {
                return Self { usable: true, reasons: vec!["taken as usable (WRENN_KVM=force)".to_owned()] };
            }
            KvmPolicy::Auto => {}
        }
        let checks = [device(root), processor(root), backend(root)];
        let usable = checks.iter().all(Result::is_ok);
        let reasons = checks.into_iter().map(|check| check.unwrap_or_else(|reason| reason)).collect();
        Self { usable, reasons }
    }
}

impl fmt::Display for KvmCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons.join("; "))
    }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn device(root: &Path) -> Result<String, String> {
    match fs::OpenOptions::new().read(true).write(true).open(below(root, "/dev/kvm")) {
        Ok(_) => Ok("/dev/kvm opens".to_owned()),
        Err(error) => Err(format!("/dev/kvm does not open: {error}")),
    }
}

fn processor(root: &Path) -> Result<String, String> {
    let text = fs::read_to_string(below(root, "/proc/cpuinfo"))
        .map_err(|error| format!("/proc/cpuinfo cannot be read: {error}"))?;
    let flags = text.lines().filter(|line| line.starts_with("flags"));
    match flags.flat_map(str::split_whitespace).find(|flag| matches!(*flag, "vmx" | "svm")) {
        Some(flag) => Ok(format!("the processor has {flag}")),
        None => Err("the processor has neither vmx nor svm".to_owned()),
    }
}

fn backend(root: &Path) -> Result<String, String> {
    if below(root, "/sys/module/kvm_pvm").exists() {
        return Err("KVM is emulated in software here (kvm_pvm): guests would start and die later".to_owned());
    }
    Ok("KVM is not emulated in software".to_owned())
}

/// What a guest that runs on it sees of it.
pub(crate) fn processor_model() -> Result<String, Failure> {
    const PATH: &str = "/proc/cpuinfo";
    let text = fs::read_to_string(PATH).doing(|| format!("reading {PATH}"))?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let parts = ["model name", "cpu family", "model", "stepping"];
    Ok(parts.iter().filter_map(|name| value(name)).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kvm: bool, flags: &str, pvm: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["dev", "proc", "sys/module"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        if kvm {
            fs::write(root.path().join("dev/kvm"), "").unwrap();
        }
        if pvm {
            fs::create_dir(root.path().join("sys/module/kvm_pvm")).unwrap();
        }
        fs::write(root.path().join("proc/cpuinfo"), format!("processor\t: 0\nflags\t\t: {flags}\n")).unwrap();
        root
    }

    #[test]
    fn all_three_signs_are_needed() {
        let usable = |host: tempfile::TempDir| KvmCheck::run_in(host.path(), KvmPolicy::Auto).usable;
        assert!(usable(host(true, "fpu vmx", false)));
        assert!(usable(host(true, "fpu svm", false)));
        assert!(!usable(host(false, "fpu vmx", false)));
        assert!(!usable(host(true, "fpu vmx_like", false)));
        assert!(!usable(host(true, "fpu vmx", true)));
    }

    #[test]
    fn every_finding_has_a_reason_and_the_operator_has_the_last_word() {
        let host = host(true, "fpu", true);
        let check = KvmCheck::run_in(host.path(), KvmPolicy::Auto);
        assert_eq!(check.reasons.len(), 3);
        assert!(check.to_string().contains("kvm_pvm"));
        assert!(KvmCheck::run_in(host.path(), KvmPolicy::Force).usable);
        assert!(!KvmCheck::run_in(host.path(), KvmPolicy::Off).usable);
    }
}
