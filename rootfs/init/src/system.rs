//! What every program expects of a running Linux: its file systems, names and devices.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    unistd::sethostname,
};

use crate::failure::Failure;

/// Until the host gives the capsule its own.
const HOSTNAME: &str = "capsule";
/// `sandbox` is a name for the machine itself that never changes.
const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n";
/// Until the host configures the capsule's name servers.
const RESOLV_CONF: &str = "nameserver 1.1.1.1\nnameserver 8.8.8.8\n";

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
}

const fn quiet() -> MsFlags {
    MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC)
}

/// In the order they are mounted.
const MOUNTS: &[Mount] = &[
    Mount { kind: "proc", at: "/proc", flags: quiet(), options: None },
    Mount { kind: "sysfs", at: "/sys", flags: quiet(), options: None },
    // Already there when an initramfs came before.
    Mount { kind: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, options: Some("mode=755") },
    Mount {
        kind: "devpts",
        at: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: Some("gid=5,mode=620,ptmxmode=666"),
    },
    Mount {
        kind: "tmpfs",
        at: "/dev/shm",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: Some("mode=1777"),
    },
    Mount {
        kind: "tmpfs",
        at: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: Some("mode=755"),
    },
    Mount {
        kind: "tmpfs",
        at: "/tmp",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: Some("mode=1777"),
    },
    Mount { kind: "cgroup2", at: "/sys/fs/cgroup", flags: quiet(), options: Some("nsdelegate") },
];

/// Names that udev would make.
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Sets everything up, going on past failures: a machine without one of these is still one that
/// somebody can look into.
pub fn set_up() -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut attempt = |result: Result<(), Failure>| failures.extend(result.err());
    for entry in MOUNTS {
        attempt(entry.mount());
    }
    for (target, link) in DEVICE_LINKS {
        match symlink(target, link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                attempt(Err(Failure::of(format!("linking {link}"))(e)));
            }
            _ => {}
        }
    }
    attempt(make_dir("/run/lock", 0o1777));
    attempt(sethostname(HOSTNAME).map_err(Failure::of("setting the host name")));
    attempt(write_if_missing("/etc/hosts", HOSTS));
    attempt(write_if_missing("/etc/resolv.conf", RESOLV_CONF));
    failures
}

impl Mount {
    fn mount(&self) -> Result<(), Failure> {
        make_dir(self.at, 0o755)?;
        match mount(Some(self.kind), self.at, Some(self.kind), self.flags, self.options) {
            Ok(()) | Err(Errno::EBUSY) => Ok(()),
            Err(errno) => Err(Failure::of(format!("mounting {}", self.at))(errno)),
        }
    }
}

fn make_dir(path: &str, mode: u32) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Failure::of(format!("making {path}")))
}

/// Images come with these files; one made elsewhere may lack them, or have left a dangling link.
fn write_if_missing(path: &str, content: &str) -> Result<(), Failure> {
    if Path::new(path).exists() {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Failure::of(format!("replacing {path}"))(e));
        }
        _ => {}
    }
    fs::write(path, content).map_err(Failure::of(format!("writing {path}")))
}
