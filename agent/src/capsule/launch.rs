//! From a snapshot to a guest that may be served: create and resume are the same steps.
//!
//! Each step leaves what it made in [`Parts`]; a failure takes those apart in reverse order.

use std::time::Duration;

use rand::TryRng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wrenn_proto::envd::v1 as envd;
use wrenn_vmm::disk::{AttachedDisk, DiskError};
use wrenn_vmm::driver::{Machine, MemorySharing, RestoreRequest};
use wrenn_vmm::failpoint;
use wrenn_vmm::network::{NetworkError, NetworkSlot};
use wrenn_vmm::paths::CapsulePaths;
use wrenn_vmm::snapshot::Snapshot;

use super::engine::Engine;
use super::error::CapsuleError;
use super::life::{Life, RunningHandle};
use super::parts::{Parts, RunningCapsule};
use super::spec::CapsuleSpec;
use super::steps::Steps;
use crate::clock::now_ns;
use crate::guest::{Guest, GuestError};
use crate::request_id::RequestId;
use crate::token::Token;

/// Fed into the guest's generator after every restore.
const ENTROPY_BYTES: usize = 256;

/// A call that took longer than this may have set a clock that is behind by as much, and is repeated. An emulated
/// guest's first call is slow, as all of its code is translated first; the second one is not.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);
/// How often it is tried: on a host that is too busy the last one stands.
const CLOCK_ATTEMPTS: usize = 3;

/// What a life is begun from.
pub struct Launch<'a> {
    pub engine: &'a Engine,
    pub spec: &'a CapsuleSpec,
    pub token: &'a Token,
    pub snapshot: &'a Snapshot,
    pub sharing: MemorySharing,
    /// Set when nobody wants the outcome any more.
    pub cancelled: &'a CancellationToken,
    pub request: &'a RequestId,
}

impl Launch<'_> {
    /// A running capsule, or an error with nothing left behind but its home, which must exist.
    pub async fn run(&self, steps: &mut Steps) -> Result<RunningCapsule, CapsuleError> {
        let home = self.engine.paths.capsule(&self.spec.name());
        let mut parts = Parts::default();
        let outcome = self.assemble(&home, &mut parts, steps).await;
        match (outcome, parts) {
            (Ok(guest), Parts { machine: Some(machine), slot: Some(slot), disk: Some(disk) }) => {
                let handle = RunningHandle { guest, life: Life::default() };
                Ok(RunningCapsule { machine, slot, disk, home, handle })
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
        home: &CapsulePaths,
        parts: &mut Parts,
        steps: &mut Steps,
    ) -> Result<Guest, CapsuleError> {
        let engine = self.engine;
        failpoint!("launch.begun").await.map_err(CapsuleError::step("beginning a life"))?;
        // Both to their end, so that what the one made is undone when the other fails.
        let (slot, disk) = tokio::join!(acquire_slot(engine), attach_disk(engine, self.snapshot, home));
        let (slot, disk) = match (slot, disk) {
            (Ok(slot), Ok(disk)) => (&*parts.slot.insert(slot), &*parts.disk.insert(disk)),
            (slot, disk) => {
                let error = slot.as_ref().err().or(disk.as_ref().err()).cloned();
                (parts.slot, parts.disk) = (slot.ok(), disk.ok());
                return Err(error.unwrap_or(CapsuleError::Stopping));
            }
        };
        steps.done("slot+disk");
        failpoint!("launch.parts").await.map_err(CapsuleError::step("getting slot and disk"))?;
        self.still_wanted()?;

        let request = RestoreRequest {
            snapshot: self.snapshot,
            // The guest goes on with the kernel in its memory.
            kernel: None,
            sharing: self.sharing,
            disk,
            slot,
            home,
            deadline: engine.grace,
        };
        let restored =
            engine.vmm.restore(request).await.map_err(CapsuleError::step("restoring the machine"))?;
        let machine = &*parts.machine.insert(restored);
        steps.done("restore");
        failpoint!("launch.restored").await.map_err(CapsuleError::step("restoring the machine"))?;

        let deadline = Instant::now() + engine.grace;
        let guest = tokio::select! {
            guest = Guest::connect(slot.guest_address(), Some(self.token), deadline) => {
                guest.map_err(CapsuleError::step("reaching the guest"))?
            }
            exit = machine.process().exited() => return Err(vmm_died(exit)),
            () = self.cancelled.cancelled() => return Err(CapsuleError::Destroyed(self.spec.id)),
        };
        steps.done("connect");
        failpoint!("launch.connected").await.map_err(CapsuleError::step("reaching the guest"))?;

        for _ in 0..CLOCK_ATTEMPTS {
            let sent = Instant::now();
            self.hand_over(&guest, machine.as_ref(), deadline).await?;
            // The guest set its clock to when this was sent: it is behind by what the way there took.
            if sent.elapsed() <= CLOCK_TOLERANCE {
                break;
            }
        }
        steps.done("post-restore");
        failpoint!("launch.handed-over")
            .await
            .map_err(CapsuleError::step("handing the guest its identity"))?;
        self.still_wanted()?;
        Ok(guest)
    }

    /// Tells the guest who and when it is, and has its random numbers made anew.
    async fn hand_over(
        &self,
        guest: &Guest,
        machine: &dyn Machine,
        deadline: Instant,
    ) -> Result<(), CapsuleError> {
        let within = deadline.saturating_duration_since(Instant::now());
        tokio::select! {
            answer = guest.post_restore(self.post_restore()?, self.request, within) => {
                let answer = answer.map_err(|error| match error {
                    GuestError::Timeout(_) => CapsuleError::GuestTimeout { step: "its restore" },
                    error => CapsuleError::step("handing the guest its identity")(error),
                })?;
                tracing::debug!(clock_step_ns = answer.clock_step_ns, "guest reseeded");
                Ok(())
            }
            exit = machine.process().exited() => Err(vmm_died(exit)),
        }
    }

    fn still_wanted(&self) -> Result<(), CapsuleError> {
        if self.cancelled.is_cancelled() { Err(CapsuleError::Destroyed(self.spec.id)) } else { Ok(()) }
    }

    fn post_restore(&self) -> Result<envd::PostRestoreRequest, CapsuleError> {
        let mut entropy = vec![0; ENTROPY_BYTES];
        rand::rngs::SysRng
            .try_fill_bytes(&mut entropy)
            .map_err(CapsuleError::step("reading random bytes"))?;
        let spec = self.spec;
        let env =
            spec.env.iter().map(|var| envd::EnvVar { name: var.name.clone(), value: var.value.clone() });
        Ok(envd::PostRestoreRequest {
            entropy: entropy.into(),
            wall_clock_ns: now_ns(),
            identity: Some(envd::Identity {
                capsule_id: spec.id.to_string(),
                template_id: spec.template.to_string(),
                hostname: spec.hostname(),
                machine_id: spec.machine_id(),
            }),
            configuration: Some(envd::ConfigureRequest {
                env: env.collect(),
                default_user: spec.default_user.clone(),
                name_servers: self.engine.name_servers.iter().map(ToString::to_string).collect(),
                token: self.token.bytes().to_vec().into(),
            }),
        })
    }
}

pub fn vmm_died(exit: wrenn_vmm::process::ProcessExit) -> CapsuleError {
    CapsuleError::VmmDied(exit.to_string())
}

/// A slot of its own, or an error that names what ran out.
pub async fn acquire_slot(engine: &Engine) -> Result<NetworkSlot, CapsuleError> {
    engine.slots.acquire().await.map_err(|error| match error {
        NetworkError::Exhausted(all) => CapsuleError::Exhausted {
            resource: "network slots",
            wanted: "1".into(),
            free: format!("0 of {all}"),
        },
        error => CapsuleError::step("getting a network slot")(error),
    })
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
