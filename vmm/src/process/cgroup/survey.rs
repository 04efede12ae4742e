//! What this host can limit a machine with. Looks, and changes nothing.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Whether machines are limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupPolicy {
    /// As far as the host can.
    #[default]
    Auto,
    Off,
}

/// The text names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a policy for cgroups: auto or off")]
pub struct InvalidPolicy(String);

impl FromStr for CgroupPolicy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err(InvalidPolicy(text.to_owned())),
        }
    }
}

/// What the kernel limits by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    Memory,
    Pids,
    Io,
}

impl Controller {
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Pids, Self::Io];
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        })
    }
}

/// As `cpu, memory`.
pub fn names(controllers: &[Controller]) -> String {
    controllers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A cgroup v2 hierarchy, and what it offers of [`Controller::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    pub mount: PathBuf,
    pub offered: Vec<Controller>,
}

/// Why no machine can be limited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unlimited {
    #[error("turned off by the operator")]
    Off,
    #[error("no cgroup v2 hierarchy is mounted that could be written to")]
    NoHierarchy,
    #[error(
        "{0} offers none of cpu, memory, pids and io: they belong to cgroup v1, or to who made this container"
    )]
    NoController(PathBuf),
}

impl Survey {
    pub fn of_host(policy: CgroupPolicy) -> Result<Self, Unlimited> {
        if policy == CgroupPolicy::Off {
            return Err(Unlimited::Off);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::of_mount(writable_hierarchy(&mounts).ok_or(Unlimited::NoHierarchy)?)
    }

    pub fn of_mount(mount: &Path) -> Result<Self, Unlimited> {
        let listed = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let offers =
            |controller: &Controller| listed.split_whitespace().any(|name| name == controller.to_string());
        let offered: Vec<Controller> = Controller::ALL.into_iter().filter(offers).collect();
        if offered.is_empty() {
            return Err(Unlimited::NoController(mount.to_owned()));
        }
        Ok(Self { mount: mount.to_owned(), offered })
    }

    /// What machines cannot be limited by.
    pub fn missing(&self) -> Vec<Controller> {
        Controller::ALL.into_iter().filter(|controller| !self.offered.contains(controller)).collect()
    }
}

/// Of proc(5)'s `mountinfo`: the mount point is the fifth field, its options the sixth; the file system's type and its
/// own options follow a lone hyphen.
fn writable_hierarchy(mounts: &str) -> Option<&Path> {
    let writable = |options: &str| options.split(',').any(|option| option == "rw");
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mount: Vec<&str> = mount.split(' ').collect();
        let file_system: Vec<&str> = file_system.split(' ').collect();
        let ours = file_system.first() == Some(&"cgroup2")
            && writable(mount.get(5)?)
            && file_system.last().is_some_and(|options| writable(options));
        ours.then(|| Path::new(mount[4]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_the_writable_one_of_version_2() {
        let mounts = "24 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                      30 24 0:26 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu\n\
                      31 24 0:27 / /ro ro,nosuid - cgroup2 cgroup2 rw\n\
                      32 24 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(writable_hierarchy(mounts), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(writable_hierarchy(mounts.lines().next().unwrap()), None);
    }

    #[test]
    fn what_is_offered_is_told_from_what_is_not() {
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join("cgroup.controllers"), "cpuset cpu memory hugetlb pids\n").unwrap();
        let survey = Survey::of_mount(mount.path()).unwrap();
        assert_eq!(names(&survey.offered), "cpu, memory, pids");
        assert_eq!(survey.missing(), [Controller::Io]);
        fs::write(mount.path().join("cgroup.controllers"), "cpuset hugetlb\n").unwrap();
        assert!(matches!(Survey::of_mount(mount.path()), Err(Unlimited::NoController(_))));
        assert_eq!(Survey::of_host(CgroupPolicy::Off), Err(Unlimited::Off));
    }
}
