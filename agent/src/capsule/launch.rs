//! From a snapshot to a guest that may be served: create and resume are the same steps.
//!
//! Each step leaves what it made in [`Parts`]; a failure takes those apart in reverse order. A machine that dies, waits for
//! memory that does not come, or is silent before its guest was handed over is replaced by another one, once.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wrenn_vmm::disk::{AttachedDisk, DiskError};
use wrenn_vmm::driver::{DriverError, Machine, MemorySharing, RestoreRequest};
use wrenn_vmm::failpoint;
use wrenn_vmm::network::{NetworkError, NetworkSlot};
use wrenn_vmm::paths::CapsulePaths;
use wrenn_vmm::snapshot::Snapshot;

use super::engine::Engine;
use super::error::CapsuleError;
use super::handover::Handover;
use super::life::{Life, RunningHandle};
use super::parts::{Parts, RunningCapsule};
use super::spec::CapsuleSpec;
use super::steps::Steps;
use crate::guest::{Guest, GuestError};
use crate::request_id::RequestId;
use crate::token::Token;

/// How long a guest that is not handed over yet may wait for a page.
const PAGE_PATIENCE: Duration = Duration::from_secs(3);

/// What a life is begun from.
pub struct Launch<'a> {
    pub engine: &'a Engine,
    pub spec: &'a CapsuleSpec,
    /// Exists, and is empty but for a record.
    pub home: &'a CapsulePaths,
    pub token: &'a Token,
    /// The one that the guest in the snapshot's memory asks for; a golden snapshot's asks for none.
    pub known: Option<&'a Token>,
    pub snapshot: &'a Snapshot,
    pub sharing: MemorySharing,
    /// Run once what every capsule runs first, so that its code is translated; only of a guest without a token.
    pub rehearse: bool,
    /// Set when nobody wants the outcome any more.
    pub cancelled: &'a CancellationToken,
    pub request: &'a RequestId,
}

impl Launch<'_> {
    /// A running capsule, or an error with nothing left behind but its home.
    pub async fn run(&self, steps: &mut Steps) -> Result<RunningCapsule, CapsuleError> {
        let grace = self.engine.grace;
        let patience = Patience { page: PAGE_PATIENCE, guest: grace / 2 };
        match self.attempt(patience, steps).await {
            Err(error) if is_of_machine(&error) => {
                tracing::warn!(error = %crate::report(&error), "a restore is tried again");
                steps.done("undo");
            }
            outcome => return outcome,
        }
        // What took the first one too long may only be a busy host.
        let patience = Patience { page: PAGE_PATIENCE * 2, guest: grace };
        self.attempt(patience, steps).await
    }

    async fn attempt(&self, patience: Patience, steps: &mut Steps) -> Result<RunningCapsule, CapsuleError> {
        let mut parts = Parts::default();
        let outcome = self.assemble(&mut parts, patience, steps).await;
        match (outcome, parts) {
            (Ok(guest), Parts { machine: Some(machine), slot: Some(slot), disk: Some(disk) }) => {
                let handle = RunningHandle { guest, life: Life::default(), vmm: machine.process().clone() };
                Ok(RunningCapsule { machine, slot, disk, home: self.home.clone(), handle })
            }
            (outcome, parts) => {
                if let Err(left) = parts.dismantle(self.engine).await {
                    tracing::error!(error = %left, "a failed start left something behind");
                }
                Err(outcome.err().unwrap_or(CapsuleError::Destroyed(self.spec.id)))
            }
        }
    }

    async fn assemble(
        &self,
        parts: &mut Parts,
        patience: Patience,
        steps: &mut Steps,
    ) -> Result<Guest, CapsuleError> {
        let (engine, home) = (self.engine, self.home);
        failpoint!("launch.begun").await.map_err(CapsuleError::step("beginning a life"))?;
        // Both to their end, so that what the one made is undone when the other fails.
        let (slot, disk) = tokio::join!(acquire_slot(engine), attach_disk(engine, self.snapshot, home));
        let (slot, disk) = match (slot, disk) {
            (Ok(slot), Ok(disk)) => (parts.slot.insert(slot), &*parts.disk.insert(disk)),
            (slot, disk) => {
                let error = slot.as_ref().err().or(disk.as_ref().err()).cloned();
                (parts.slot, parts.disk) = (slot.ok(), disk.ok());
                return Err(error.unwrap_or(CapsuleError::Stopping));
            }
        };
        steps.done("slot+disk");
        failpoint!("launch.parts").await.map_err(CapsuleError::step("getting slot and disk"))?;
        // Before the guest runs, so that nothing of it comes out that should not.
        restrict(engine, slot, self.spec).await?;
        failpoint!("launch.restricted").await.map_err(CapsuleError::step("applying the egress policy"))?;
        let slot = &*slot;
        steps.done("egress");
        self.still_wanted()?;

        let template = self.spec.template.to_string();
        let request = RestoreRequest {
            snapshot: self.snapshot,
            // The guest goes on with the kernel in its memory.
            kernel: None,
            sharing: self.sharing,
            disk,
            slot,
            home,
            template: Some(&template),
            deadline: engine.grace,
        };
        let restored = engine.vmm.restore(request).await.map_err(|error| match error {
            DriverError::Refused(mismatch) => CapsuleError::Refused { reason: mismatch.to_string() },
            error => CapsuleError::step("restoring the machine")(error),
        })?;
        let machine = &**parts.machine.insert(restored);
        steps.done("restore");
        failpoint!("launch.restored").await.map_err(CapsuleError::step("restoring the machine"))?;
        tokio::select! {
            biased;
            guest = self.take_over(machine, slot, patience.guest, steps) => guest,
            why = machine.starves(patience.page) => Err(CapsuleError::VmmDied(why)),
        }
    }

    /// Makes the guest the capsule's, from its first answer on.
    async fn take_over(
        &self,
        machine: &dyn Machine,
        slot: &NetworkSlot,
        within: Duration,
        steps: &mut Steps,
    ) -> Result<Guest, CapsuleError> {
        let deadline = Instant::now() + within;
        let guest = tokio::select! {
            guest = self.reach(slot, deadline) => guest.map_err(CapsuleError::guest("reaching the guest"))?,
            exit = machine.process().exited() => return Err(vmm_died(exit)),
            () = self.cancelled.cancelled() => return Err(CapsuleError::Destroyed(self.spec.id)),
        };
        steps.done("connect");
        failpoint!("launch.connected").await.map_err(CapsuleError::step("reaching the guest"))?;

        let Self { engine, spec, token, request, .. } = *self;
        let guest =
            Handover { engine, spec, token, request, goes_on: false }.run(guest, machine, deadline).await?;
        steps.done("post-restore");
        failpoint!("launch.handed-over")
            .await
            .map_err(CapsuleError::step("handing the guest its identity"))?;
        self.still_wanted()?;
        Ok(guest)
    }

    async fn reach(&self, slot: &NetworkSlot, deadline: Instant) -> Result<Guest, GuestError> {
        let guest = Guest::connect(slot.guest_address(), self.known, deadline).await?;
        if self.rehearse {
            guest.prepare_snapshot(self.request).await?;
        }
        Ok(guest)
    }

    fn still_wanted(&self) -> Result<(), CapsuleError> {
        if self.cancelled.is_cancelled() { Err(CapsuleError::Destroyed(self.spec.id)) } else { Ok(()) }
    }
}

/// For how long a machine may be of no use.
struct Patience {
    /// To its guest, which waits for a page.
    page: Duration,
    /// To this agent, which waits for the guest to be handed over.
    guest: Duration,
}

/// Another machine may do better.
fn is_of_machine(error: &CapsuleError) -> bool {
    matches!(error, CapsuleError::VmmDied(_) | CapsuleError::GuestTimeout { .. })
}

pub fn vmm_died(exit: wrenn_vmm::process::ProcessExit) -> CapsuleError {
    CapsuleError::VmmDied(exit.to_string())
}

/// A slot of its own, for which what was made ahead gives way, or an error that names what ran out.
pub async fn acquire_slot(engine: &Engine) -> Result<NetworkSlot, CapsuleError> {
    loop {
        let all = match engine.slots.acquire().await {
            Ok(slot) => return Ok(slot),
            Err(NetworkError::Exhausted(all)) => all,
            Err(error) => return Err(CapsuleError::step("getting a network slot")(error)),
        };
        let Some(member) = engine.pool.give_up() else {
            let free = format!("0 of {all}");
            return Err(CapsuleError::Exhausted { resource: "network slots", wanted: "1".into(), free });
        };
        member.discard(engine).await;
    }
}

/// Puts the capsule's egress policy in place; the same again for a capsule that runs.
pub async fn restrict(
    engine: &Engine,
    slot: &mut NetworkSlot,
    spec: &CapsuleSpec,
) -> Result<(), CapsuleError> {
    let restricted = slot.restrict(&spec.egress, &engine.name_servers).await;
    restricted.map_err(CapsuleError::step("applying the egress policy"))
}

async fn attach_disk(
    engine: &Engine,
    snapshot: &Snapshot,
    home: &CapsulePaths,
) -> Result<AttachedDisk, CapsuleError> {
    let view = engine
        .disks
        .create(&snapshot.disk(), &home.disk())
        .await
        .map_err(CapsuleError::step::<DiskError>("making the disk"))?;
    match engine.disks.attach(&view).await {
        Ok(disk) => Ok(disk),
        Err(error) => {
            if let Err(left) = engine.disks.remove(view).await {
                tracing::error!(error = %crate::report(&left), "a disk that was not attached is left");
            }
            Err(CapsuleError::step("attaching the disk")(error))
        }
    }
}
