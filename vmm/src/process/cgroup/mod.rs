//! What one machine may take of its host, by cgroup v2: a group for each VMM, which the kernel holds to it.
//!
//! ```text
//! <cgroup2>/wrenn/                 of all agents of this machine
//!           wrenn/<agent>/         of the machines of one agent
//!           wrenn/<agent>/<slot>/  one VMM, by its network slot, which nobody else has as long as it lives
//! ```
//!
//! The group is made, with its limits, before its VMM is started, and the VMM is put in as soon as it has a number: it has
//! loaded its program then, but opened nothing and run nothing of a guest. The group goes after its VMM. It lies outside
//! the service manager's groups, because machines outlive the agent.

mod survey;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

pub(crate) use self::survey::names;
pub use self::survey::{CgroupPolicy, Controller, InvalidPolicy, Survey, Unlimited};
use crate::{
    driver::MachineConfig,
    failure::{Doing as _, Failure, Failures, Teardown, blocking},
    network::SlotNumber,
    paths::HostPaths,
};

/// What a VMM may take besides its guest's memory before it is slowed down: its own, mostly the buffer of translated
/// code, and the host's cache of its disk.
const OVERHEAD_MIB: u64 = 192;
/// And how much more before it is killed.
const LEEWAY_MIB: u64 = 64;
/// As the limit on its user's processes.
const MOST_PIDS: u64 = 512;
/// Of one vCPU; the kernel's own default for a whole group, of 1 to 10000.
const WEIGHT: u64 = 100;
const GREATEST_WEIGHT: u64 = 10_000;
/// In which the CPU quota is given out; the kernel's default.
const PERIOD_US: f64 = 100_000.0;
/// How long the kernel may take to see a group empty once its last process was waited for.
const REMOVAL: Duration = Duration::from_secs(2);
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// What the operator has decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CgroupOptions {
    pub policy: CgroupPolicy,
    /// Host CPUs that a vCPU may use, the VMM's own work included; 0 = as many as there are.
    pub cpus_per_vcpu: f64,
}

/// The groups of one agent's machines. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Cgroups(Option<Arc<Tree>>);

#[derive(Debug)]
struct Tree {
    directory: PathBuf,
    /// Levels of it that were made for machines.
    depth: usize,
    enforced: Vec<Controller>,
    cpus_per_vcpu: f64,
}

/// The group of one machine.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Cgroups {
    /// No machine is limited.
    pub fn none() -> Self {
        Self(None)
    }

    /// Makes the groups that hold the machines' own. Where the host cannot limit anything, no machine is.
    pub async fn open(paths: &HostPaths, options: &CgroupOptions) -> Self {
        let (place, options) = (paths.cgroup(), *options);
        blocking(move || {
            let survey = Survey::of_host(options.policy).inspect_err(|reason| {
                tracing::warn!(%reason, "machines are not limited");
            });
            let opened = survey.ok().map(|survey| Self::within(&survey, &place, options.cpus_per_vcpu));
            let opened = opened.transpose().inspect_err(|failure| {
                tracing::warn!(error = %failure, cause = %failure.source, "machines are not limited");
            });
            opened.ok().flatten().unwrap_or_default()
        })
        .await
    }

    /// At a place below a hierarchy, with as many of the controllers offered there as can be had.
    pub fn within(survey: &Survey, place: &Path, cpus_per_vcpu: f64) -> Result<Self, Failure> {
        let directory = survey.mount.join(place);
        fs::create_dir_all(&directory).doing(|| format!("making the group {}", directory.display()))?;
        let mut enforced = survey.offered.clone();
        // From the top down: a group can only hand on what it was given.
        let mut level = survey.mount.clone();
        let mut levels = vec![level.clone()];
        for part in place {
            level.push(part);
            levels.push(level.clone());
        }
        for level in levels {
            enforced.retain(|controller| match hand_on(&level, *controller) {
                Ok(()) => true,
                Err(failure) => {
                    tracing::warn!(error = %failure, cause = %failure.source, "machines are not limited by {controller}");
                    false
                }
            });
        }
        tracing::info!(directory = %directory.display(), by = names(&enforced), "machines are limited");
        Ok(Self(Some(Arc::new(Tree {
            directory,
            depth: place.components().count(),
            enforced,
            cpus_per_vcpu,
        }))))
    }

    /// A group with the limits of such a machine. One that an earlier life of it left is taken over.
    pub fn create(&self, slot: SlotNumber, config: &MachineConfig) -> Result<Option<Group>, Failure> {
        let Some(tree) = &self.0 else { return Ok(None) };
        let group = tree.group(slot);
        match fs::create_dir(&group.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::new(format!("making the group {}", group.0.display()), error));
            }
            _ => {}
        }
        if let Err(failure) = tree.limit(&group, config) {
            if let Err(left) = self.remove(slot) {
                tracing::warn!(error = %left, cause = %left.source, "a group without limits is left");
            }
            return Err(failure);
        }
        Ok(Some(group))
    }

    /// After its machine has ended; one that is not there is removed already. Blocks for as long as the kernel takes.
    pub fn remove(&self, slot: SlotNumber) -> Result<(), Failure> {
        let Some(tree) = &self.0 else { return Ok(()) };
        let Group(group) = tree.group(slot);
        let deadline = Instant::now() + REMOVAL;
        loop {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    // Nothing is left in it that anybody knows of.
                    let _ended = fs::write(group.join("cgroup.kill"), "1");
                    thread::sleep(REMOVAL_PAUSE);
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::new(format!("removing the group {}", group.display()), error));
                }
                _ => return Ok(()),
            }
        }
    }

    /// As [`remove`](Self::remove), among other things that are taken down.
    pub(crate) fn clear(&self, slot: SlotNumber, teardown: &mut Teardown) {
        if let Err(failure) = self.remove(slot) {
            teardown.failed(failure);
        }
    }

    /// Removes the groups of machines that have ended while nobody watched; a group with a living one stays.
    pub async fn sweep(&self) -> Result<(), Failures> {
        let Some(tree) = self.0.clone() else { return Ok(()) };
        blocking(move || {
            let mut teardown = Teardown::default();
            for entry in fs::read_dir(&tree.directory).into_iter().flatten().flatten() {
                let path = entry.path();
                match path.is_dir().then(|| fs::remove_dir(&path)) {
                    Some(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => {}
                    Some(removed) => {
                        teardown.step(|| format!("removing the group {}", path.display()), removed);
                    }
                    None => {}
                }
            }
            teardown.finish()
        })
        .await
    }

    /// Removes what [`open`](Self::open) made, unless machines go on in it or in those of another agent.
    pub async fn close(self) {
        let Some(tree) = self.0 else { return };
        blocking(move || {
            for group in tree.directory.ancestors().take(tree.depth) {
                // The kernel refuses what is in use.
                if fs::remove_dir(group).is_err() {
                    return;
                }
            }
        })
        .await;
    }

    /// By what machines are limited here.
    pub fn enforced(&self) -> &[Controller] {
        self.0.as_ref().map_or(&[], |tree| &tree.enforced)
    }
}

impl Tree {
    fn group(&self, slot: SlotNumber) -> Group {
        Group(self.directory.join(slot.to_string()))
    }

    fn limit(&self, group: &Group, config: &MachineConfig) -> Result<(), Failure> {
        for controller in &self.enforced {
            for (file, value) in limits(*controller, config, self.cpus_per_vcpu) {
                let path = group.0.join(file);
                match fs::write(&path, &value) {
                    // Not every kernel can weigh I/O.
                    Err(error)
                        if error.kind() == io::ErrorKind::NotFound && *controller == Controller::Io => {}
                    written => written.doing(|| format!("writing {value:?} to {}", path.display()))?,
                }
            }
        }
        Ok(())
    }
}

impl Group {
    /// Puts a process in, with all its threads.
    pub fn add(&self, pid: i32) -> Result<(), Failure> {
        let path = self.0.join("cgroup.procs");
        fs::write(&path, pid.to_string()).doing(|| format!("putting process {pid} into {}", self.0.display()))
    }
}

/// The files of a group, and what to write to them: the kernel's `cgroup-v2` documentation.
pub fn limits(
    controller: Controller,
    config: &MachineConfig,
    cpus_per_vcpu: f64,
) -> Vec<(&'static str, String)> {
    let vcpus = u64::from(config.vcpus);
    let weight = (WEIGHT * vcpus).clamp(1, GREATEST_WEIGHT);
    match controller {
        Controller::Cpu => {
            let quota = f64::from(config.vcpus) * cpus_per_vcpu * PERIOD_US;
            let quota = if quota > 0.0 { format!("{quota:.0}") } else { "max".to_owned() };
            vec![("cpu.weight", weight.to_string()), ("cpu.max", format!("{quota} {PERIOD_US:.0}"))]
        }
        Controller::Memory => {
            let high = u64::from(config.memory_mib) + OVERHEAD_MIB;
            let bytes = |mib: u64| (mib << 20).to_string();
            vec![("memory.high", bytes(high)), ("memory.max", bytes(high + LEEWAY_MIB))]
        }
        Controller::Pids => vec![("pids.max", MOST_PIDS.to_string())],
        Controller::Io => vec![("io.weight", format!("default {weight}"))],
    }
}

/// Lets the groups within one use a controller.
fn hand_on(group: &Path, controller: Controller) -> Result<(), Failure> {
    let path = group.join("cgroup.subtree_control");
    let handed_on = fs::read_to_string(&path).unwrap_or_default();
    if handed_on.split_whitespace().any(|name| name == controller.to_string()) {
        return Ok(());
    }
    fs::write(&path, format!("+{controller}")).doing(|| format!("adding {controller} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: MachineConfig = MachineConfig { vcpus: 2, memory_mib: 512 };

    #[test]
    fn limits_follow_from_the_size_of_the_machine() {
        let all: Vec<(&str, String)> =
            Controller::ALL.into_iter().flat_map(|controller| limits(controller, &CONFIG, 1.5)).collect();
        let expected = [
            ("cpu.weight", "200"),
            ("cpu.max", "300000 100000"),
            ("memory.high", "738197504"),
            ("memory.max", "805306368"),
            ("pids.max", "512"),
            ("io.weight", "default 200"),
        ];
        assert_eq!(all, expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(limits(Controller::Cpu, &CONFIG, 0.0)[1].1, "max 100000");
        let many = MachineConfig { vcpus: 255, ..CONFIG };
        assert_eq!(limits(Controller::Cpu, &many, 1.0)[0].1, "10000");
    }
}
