//! What every VMM can do. The callers know only these traits; a driver knows one VMM.

mod identity;
mod request;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::{
    identity::{IdentityMismatch, KernelImage, MachineConfig, VmmIdentity},
    request::{BootRequest, DriverRecord, MachineRecord, MemorySharing, RestoreRequest, SaveReport},
};
use crate::{
    failure::{Failure, Failures},
    kvm::KvmPolicy,
    memory::MemoryError,
    paths::CapsulePaths,
    process::{ProcessError, ProcessExit, VmmProcess, cgroup::Cgroups},
    qemu::{QemuDriver, QmpError},
    snapshot::{Snapshot, SnapshotError, SnapshotWriter},
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

    /// When this returns no guest instruction runs and all disk writes have reached the disk's file.
    async fn stop_vcpus(&mut self) -> Result<(), DriverError>;

    /// Also after a save that failed, and where they run.
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

/// What the choice of a driver depends on.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    pub kvm: KvmPolicy,
    /// `qemu-system-x86_64` from the search path if unset.
    pub qemu_binary: Option<PathBuf>,
    /// [`HostPaths::run`](crate::paths::HostPaths::run): what was measured is kept there.
    pub run: PathBuf,
    /// What holds machines to their share of the host.
    pub cgroups: Cgroups,
}

/// The best driver this host can use.
pub async fn open(options: &DriverOptions) -> Result<Arc<dyn Driver>, DriverError> {
    Ok(Arc::new(QemuDriver::open(options).await?))
}
