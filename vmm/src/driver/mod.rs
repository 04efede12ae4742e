//! What every VMM can do. The callers know only these traits; a driver knows one VMM.

pub(crate) mod base;
pub(crate) mod disk_lock;
mod identity;
pub(crate) mod image;
pub(crate) mod merging;
mod request;

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::{
    identity::{IdentityMismatch, KernelImage, MachineConfig, VmmIdentity},
    request::{BootRequest, DriverRecord, MachineRecord, MemorySharing, RestoreRequest, SaveReport},
};
use crate::{
    failure::{Failure, Failures},
    firecracker::{
        self, FirecrackerDriver, FirecrackerMachine, PageServerCommand, RestoreChoice, api::ApiError,
    },
    kvm::{KvmCheck, KvmPolicy},
    memory::MemoryError,
    paths::CapsulePaths,
    process::{ProcessError, ProcessExit, VmmProcess, cgroup::Cgroups},
    qemu::{QemuDriver, QemuMachine, QmpError},
    snapshot::{Snapshot, SnapshotError, SnapshotWriter},
    uffd::PageServerFailure,
};

/// Starts machines, or takes up those that run.
#[async_trait]
pub trait Driver: Send + Sync {
    /// As `qemu/tcg 7.2.22`.
    fn summary(&self) -> String;

    /// What a snapshot taken now of a machine with this kernel could be restored by.
    fn identity(&self, kernel: &KernelImage) -> VmmIdentity;

    /// Starts a machine from nothing; returns once its vCPUs run. On error nothing of it is left.
    async fn boot(&self, request: BootRequest<'_>) -> Result<Box<dyn Machine>, DriverError>;

    /// Starts a machine where a snapshot left off; returns once its vCPUs run. A snapshot of another
    /// VMM, CPU model or kernel is refused before anything starts. On error nothing of it is left.
    async fn restore(&self, request: RestoreRequest<'_>) -> Result<Box<dyn Machine>, DriverError>;

    /// Takes up a machine that another life of the host's agent started. [`DriverError::Process`] if
    /// it is not alive any more.
    async fn adopt(&self, record: &MachineRecord) -> Result<Box<dyn Machine>, DriverError>;

    /// Nothing is started from this snapshot any more: what the driver keeps to start from it faster is let go.
    /// Before its files are removed; machines that run from it go on.
    async fn forget(&self, snapshot: &Snapshot) -> Result<(), DriverError>;
}

/// One living machine. Dropping it leaves it running: see [`Driver::adopt`].
#[async_trait]
pub trait Machine: Send + Sync {
    /// All that [`Driver::adopt`] needs.
    fn record(&self) -> MachineRecord;

    /// The VMM's process, to notice its end.
    fn process(&self) -> &VmmProcess;

    /// Answers why the guest's memory is no longer brought to it, should that happen: the guest waits for it for ever then.
    /// What takes longer than `patience` counts as that. Never answers of a machine that has all of its memory.
    async fn starves(&self, _patience: Duration) -> String {
        std::future::pending().await
    }

    /// Waits until the VMM itself stops the vCPUs, as the host has no room for what the guest writes; lets them try again
    /// every second until there is, and answers how long they stood still. Those that were stopped by
    /// [`stop_vcpus`](Self::stop_vcpus) are left alone. May be given up and begun again at any time. Never answers where a
    /// guest gets an error instead.
    async fn outlast_stall(&mut self) -> Duration {
        std::future::pending().await
    }

    /// Whether [`outlast_stall`](Self::outlast_stall) has noticed that the vCPUs stand still, and they still do.
    fn is_stalled(&self) -> bool {
        false
    }

    /// When this returns no guest instruction runs, and all disk writes have reached the disk's file but those that found no
    /// room, which a [`save`](Self::save) holds.
    async fn stop_vcpus(&mut self) -> Result<(), DriverError>;

    /// Also after a save that failed, and where they run. A stall that was noticed is forgotten.
    async fn resume_vcpus(&mut self) -> Result<(), DriverError>;

    /// Does what can be done ahead of a [`save`](Self::save) into the same snapshot while the guest still runs, so
    /// that it stands still for less long.
    async fn prepare_save(&mut self, into: &mut SnapshotWriter) -> Result<(), DriverError>;

    /// Writes memory and device state while the vCPUs are stopped. May be repeated.
    async fn save(&mut self, into: &mut SnapshotWriter) -> Result<SaveReport, DriverError>;

    /// All that was in its home is in this one now: see [`CapsulePaths::move_into`].
    fn set_home(&mut self, home: CapsulePaths);

    /// The last of what the guest wrote to its serial console.
    async fn console(&mut self) -> Result<String, DriverError>;

    /// What the VMM itself said last; also once it has ended.
    fn last_words(&self) -> String;

    /// Ends the VMM at once, waits for its end, removes what the driver made. Loses nothing of the disk
    /// after [`stop_vcpus`](Self::stop_vcpus).
    async fn terminate(self: Box<Self>) -> Result<(), DriverError>;
}

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("the snapshot cannot be restored here")]
    Refused(#[from] IdentityMismatch),
    #[error("no usable VMM: {0}")]
    NoVmm(String),
    #[error(transparent)]
    Io(#[from] Failure),
    #[error("removing what belonged to the machine")]
    Teardown(#[from] Failures),
    /// It ended while something was wanted of it.
    #[error("the VMM ended ({exit}) while {during}; its last words: {stderr:?}")]
    Ended { during: &'static str, exit: ProcessExit, stderr: String },
    #[error("the VMM was not done with {during} after {after:?}; its last words: {stderr:?}")]
    Deadline { during: &'static str, after: Duration, stderr: String },
    #[error("{during}")]
    Qmp {
        during: &'static str,
        #[source]
        source: QmpError,
    },
    #[error("{during}")]
    Firecracker {
        during: &'static str,
        #[source]
        source: ApiError,
    },
    #[error("the machine's page server")]
    PageServer(#[from] PageServerFailure),
    /// The guest would have waited for its memory for ever.
    #[error("the machine's memory is not served: {0}")]
    PagesLost(String),
    #[error("the VMM's process")]
    Process(#[from] ProcessError),
    #[error("the snapshot's files")]
    Snapshot(#[from] SnapshotError),
    #[error("another machine runs from the disk {0}")]
    DiskInUse(PathBuf),
    /// The memory's mapping is not what a machine of this record has.
    #[error("the machine's memory: {0}")]
    Memory(String),
    #[error("the machine's memory in generations")]
    Generations(#[from] MemoryError),
}

/// Which VMM to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmmChoice {
    /// Firecracker where it is there and KVM is usable, QEMU elsewhere.
    #[default]
    Auto,
    Firecracker,
    Qemu,
}

/// The text names no VMM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a VMM: auto, firecracker or qemu")]
pub struct InvalidVmm(String);

impl FromStr for VmmChoice {
    type Err = InvalidVmm;

    fn from_str(text: &str) -> Result<Self, InvalidVmm> {
        match text {
            "auto" => Ok(Self::Auto),
            "firecracker" => Ok(Self::Firecracker),
            "qemu" => Ok(Self::Qemu),
            _ => Err(InvalidVmm(text.to_owned())),
        }
    }
}

/// What the choice of a driver depends on.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    pub vmm: VmmChoice,
    pub kvm: KvmPolicy,
    /// `qemu-system-x86_64` from the search path if unset.
    pub qemu_binary: Option<PathBuf>,
    /// `firecracker` from the search path if unset.
    pub firecracker_binary: Option<PathBuf>,
    /// How Firecracker gets the memory of a snapshot.
    pub restore: RestoreChoice,
    /// Unset where there is none: then memory is always mapped.
    pub page_server: Option<PageServerCommand>,
    /// [`HostPaths::run`](crate::paths::HostPaths::run): what was measured is kept there.
    pub run: PathBuf,
    /// What holds machines to their share of the host.
    pub cgroups: Cgroups,
}

/// The best driver this host can use, of those that are allowed.
pub async fn open(options: &DriverOptions) -> Result<Arc<dyn Driver>, DriverError> {
    match choose(options.vmm, options.kvm, options.firecracker_binary.as_deref()).0 {
        Chosen::Firecracker => Ok(Arc::new(FirecrackerDriver::open(options).await?)),
        Chosen::Qemu => Ok(Arc::new(QemuDriver::open(options).await?)),
    }
}

/// A VMM that is to be used, whether it is there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    Firecracker,
    Qemu,
}

/// Which VMM to use, and why.
pub(crate) fn choose(
    vmm: VmmChoice,
    kvm: KvmPolicy,
    firecracker: Option<&std::path::Path>,
) -> (Chosen, String) {
    match vmm {
        VmmChoice::Firecracker => (Chosen::Firecracker, "chosen by the operator".to_owned()),
        VmmChoice::Qemu => (Chosen::Qemu, "chosen by the operator".to_owned()),
        VmmChoice::Auto => {
            let check = KvmCheck::run(kvm);
            if !check.usable {
                return (Chosen::Qemu, check.to_string());
            }
            // A program that was given and is not there is an error, not a reason to use another.
            if firecracker.is_some() || firecracker::find_program().is_some() {
                return (Chosen::Firecracker, check.to_string());
            }
            let why = format!("{check}; but there is no {} in the search path", firecracker::PROGRAM);
            (Chosen::Qemu, why)
        }
    }
}

/// Takes up a machine, whatever driver started it: what is chosen today holds for machines that are started today.
pub(crate) async fn adopt(
    record: &MachineRecord,
    cgroups: &Cgroups,
) -> Result<Box<dyn Machine>, DriverError> {
    let process = VmmProcess::adopt(&record.process)?;
    let cgroups = cgroups.clone();
    Ok(match &record.driver {
        DriverRecord::Qemu(qemu) => Box::new(QemuMachine::adopt(process, record, qemu, cgroups).await?),
        DriverRecord::Firecracker(firecracker) => {
            Box::new(FirecrackerMachine::adopt(process, record, firecracker, cgroups).await?)
        }
    })
}
