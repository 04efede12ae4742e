//! What one life of a capsule holds on the host, and how it is taken apart.

use std::time::Duration;

use wrenn_vmm::disk::AttachedDisk;
use wrenn_vmm::driver::{Machine, MachineRecord};
use wrenn_vmm::failpoint;
use wrenn_vmm::network::NetworkSlot;
use wrenn_vmm::paths::CapsulePaths;

use super::engine::Engine;
use super::error::{Teardown, TeardownError};
use super::life::{Life, RunningHandle};
use super::reconnect::UnheardCapsule;
use crate::guest::Guest;

/// A life being made or unmade: any part of it may be missing.
#[derive(Default)]
pub struct Parts {
    pub slot: Option<NetworkSlot>,
    pub disk: Option<AttachedDisk>,
    pub machine: Option<Box<dyn Machine>>,
}

impl Parts {
    /// Ends the VMM, then gives back what it used. Every part is tried; the errors come together.
    pub async fn dismantle(self, engine: &Engine) -> Result<(), TeardownError> {
        self.take_apart(engine, DiskFate::Removed).await
    }

    /// As [`dismantle`](Self::dismantle), but the disk's files stay: they may be all that is left of somebody's work.
    pub async fn dismantle_but_disk(self, engine: &Engine) -> Result<(), TeardownError> {
        self.take_apart(engine, DiskFate::Kept).await
    }

    async fn take_apart(self, engine: &Engine, fate: DiskFate) -> Result<(), TeardownError> {
        let mut teardown = Teardown::default();
        if let Some(machine) = self.machine {
            teardown.note("ending the VMM", machine.terminate().await);
        }
        teardown.note("ending the VMM", failpoint!("dismantle.ended").await);
        if let Some(disk) = self.disk
            && let Some(view) = teardown.note("detaching the disk", engine.disks.detach(disk).await)
            && fate == DiskFate::Removed
        {
            teardown.note("removing the disk", engine.disks.remove(view).await);
        }
        teardown.note("removing the disk", failpoint!("dismantle.removed").await);
        if let Some(slot) = self.slot {
            teardown.note("releasing the network slot", engine.slots.release(slot).await);
        }
        teardown.note("releasing the network slot", failpoint!("dismantle.released").await);
        teardown.finish()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DiskFate {
    Removed,
    Kept,
}

/// A capsule that runs: it owns its VMM, its slot and its disk. Pausing consumes it.
pub struct RunningCapsule {
    pub machine: Box<dyn Machine>,
    pub slot: NetworkSlot,
    pub disk: AttachedDisk,
    pub home: CapsulePaths,
    pub handle: RunningHandle,
}

impl RunningCapsule {
    pub fn into_parts(self) -> Parts {
        Parts { slot: Some(self.slot), disk: Some(self.disk), machine: Some(self.machine) }
    }

    /// Its life has ended, its machine goes on, and its guest does not answer.
    pub fn unheard(self, grace: Duration) -> UnheardCapsule {
        let Self { machine, slot, disk, home, handle: _ } = self;
        UnheardCapsule::new(machine, slot, disk, home, grace)
    }

    /// Puts another life in the place of one that ended though the machine goes on.
    pub fn begin_life(&mut self, guest: Guest) {
        self.handle = RunningHandle { guest, life: Life::default(), vmm: self.handle.vmm.clone() };
    }

    pub fn record(&self) -> MachineRecord {
        self.machine.record()
    }
}
