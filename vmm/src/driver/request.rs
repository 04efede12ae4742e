//! What is asked of a driver, and what it says of a machine.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    disk::AttachedDisk,
    driver::{KernelImage, MachineConfig, VmmIdentity},
    firecracker::FirecrackerRecord,
    network::{NetworkSlot, SlotNumber},
    paths::CapsulePaths,
    process::ProcessIdentity,
    qemu::QemuRecord,
    snapshot::Snapshot,
};

/// A machine to start from nothing.
pub struct BootRequest<'a> {
    pub config: MachineConfig,
    pub kernel: &'a KernelImage,
    pub disk: &'a AttachedDisk,
    pub slot: &'a NetworkSlot,
    /// Exists, on the data file system.
    pub home: &'a CapsulePaths,
    /// For the VMM to start, not for the guest to come up.
    pub deadline: Duration,
}

/// A machine to start from a snapshot.
pub struct RestoreRequest<'a> {
    pub snapshot: &'a Snapshot,
    /// Refuse a snapshot of any other guest kernel. Unset where the machine just goes on with the kernel
    /// that is in its memory, whatever the host boots today.
    pub kernel: Option<&'a KernelImage>,
    pub sharing: MemorySharing,
    pub disk: &'a AttachedDisk,
    pub slot: &'a NetworkSlot,
    /// Exists, on the file system the snapshot is on.
    pub home: &'a CapsulePaths,
    /// What the guest can be told it was made from.
    pub template: Option<&'a str>,
    /// Until the vCPUs run.
    pub deadline: Duration,
}

/// Who else runs from a snapshot's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySharing {
    /// Many machines start from it: none of them may ever be able to change it.
    Shared,
    /// It is the pause of the one capsule that is now resumed.
    Own,
}

/// What a save did.
#[derive(Clone, Copy, Debug)]
pub struct SaveReport {
    /// Pages that were copied, in bytes; what came by cloning is not counted.
    pub memory_written_bytes: u64,
    pub state_bytes: u64,
    pub memory_took: Duration,
    pub state_took: Duration,
}

/// A machine as it can be found again by another life of the host's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    pub process: ProcessIdentity,
    pub identity: VmmIdentity,
    pub config: MachineConfig,
    pub slot: SlotNumber,
    pub home: CapsulePaths,
    /// [`Snapshot::id`] of what it was restored from.
    #[serde(default)]
    pub parent: Option<String>,
    pub driver: DriverRecord,
}

/// What only the driver understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum DriverRecord {
    Qemu(QemuRecord),
    Firecracker(FirecrackerRecord),
}
