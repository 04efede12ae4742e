//! From running to paused: what runs is frozen, written down, and only then taken apart.

use std::time::Duration;

use wrenn_vmm::failpoint;
use wrenn_vmm::snapshot::{self, Snapshot, SnapshotWriter};

use super::engine::Engine;
use super::error::CapsuleError;
use super::handover::Handover;
use super::life::LifeEnd;
use super::parts::RunningCapsule;
use super::reconnect::reconnect;
use super::spec::CapsuleSpec;
use super::steps::Steps;
use crate::request_id::RequestId;
use crate::token::Token;

/// How long a pause waits for proxied requests in flight; no new ones are let in meanwhile.
const DRAIN: Duration = Duration::from_secs(2);

/// A frozen capsule: its snapshot holds memory, devices and disk. Resuming reads it.
pub struct PausedCapsule {
    pub snapshot: Box<Snapshot>,
}

/// What is left of a capsule whose pause failed.
pub enum PauseFailure {
    /// It runs on, in the same life or in another one.
    Running(Box<RunningCapsule>, CapsuleError),
    /// It runs on, and its guest does not answer.
    Silent(Box<RunningCapsule>, CapsuleError),
    /// Its VMM is alive and cannot be made to go on.
    Stuck(Box<RunningCapsule>, CapsuleError),
}

/// A capsule frozen and saved; its machine still has to be taken apart.
pub struct Saved {
    pub running: Box<RunningCapsule>,
    pub paused: PausedCapsule,
}

/// Freezes and saves. After a failure past the point where vCPUs stopped, they run again.
pub async fn save(
    engine: &Engine,
    spec: &CapsuleSpec,
    token: &Token,
    mut running: Box<RunningCapsule>,
    request: &RequestId,
    steps: &mut Steps,
) -> Result<Saved, PauseFailure> {
    running.handle.life.drain(DRAIN).await;
    steps.done("drain");
    if let Err(error) = running.handle.guest.prepare_snapshot(request).await {
        if running.machine.process().has_exited().is_some() {
            return Err(PauseFailure::Running(running, CapsuleError::guest("preparing the guest")(error)));
        }
        // Its memory goes with its disk, so nothing that it has not written out is lost; and whoever is root in a guest
        // must not be able to keep it from being paused.
        tracing::warn!(error = %crate::report(&error), "pausing a guest that does not prepare for it");
    }
    steps.done("prepare");
    // From here on this life is over, whatever becomes of the pause: streams end and can be taken up again.
    running.handle.life.end(LifeEnd::Paused);
    match freeze(engine, spec, &mut running, steps).await {
        Ok(snapshot) => Ok(Saved { running, paused: PausedCapsule { snapshot: Box::new(snapshot) } }),
        Err(error) => {
            Err(thaw(&Handover { engine, spec, token, request, goes_on: true }, running, error).await)
        }
    }
}

async fn freeze(
    engine: &Engine,
    spec: &CapsuleSpec,
    running: &mut RunningCapsule,
    steps: &mut Steps,
) -> Result<Snapshot, CapsuleError> {
    failpoint!("pause.prepared").await.map_err(CapsuleError::step("preparing the guest"))?;
    running.machine.stop_vcpus().await.map_err(CapsuleError::step("stopping the vCPUs"))?;
    steps.done("stop");
    failpoint!("pause.stopped").await.map_err(CapsuleError::step("stopping the vCPUs"))?;
    let directory = engine.paths.snapshot(&spec.name());
    let mut writer =
        SnapshotWriter::begin(&directory).await.map_err(CapsuleError::step("beginning the snapshot"))?;
    failpoint!("pause.begun").await.map_err(CapsuleError::step("beginning the snapshot"))?;
    let saved = async {
        let disk = writer.disk_path();
        // Memory and disk of the same moment: both while the vCPUs stand still. They run again only when the snapshot is
        // gone, so it may have the disk's own files.
        let (memory, disk) = tokio::join!(
            running.machine.save(&mut writer),
            engine.disks.clone_frozen(running.disk.view(), &disk)
        );
        memory.map_err(CapsuleError::step("saving the machine"))?;
        disk.map_err(CapsuleError::step("cloning the disk"))
    }
    .await;
    if let Err(error) = saved {
        if let Err(left) = writer.abort().await {
            tracing::warn!(error = %crate::report(&left), "half a snapshot is left");
        }
        return Err(error);
    }
    steps.done("save");
    failpoint!("pause.saved").await.map_err(CapsuleError::step("saving the machine"))?;
    let snapshot = writer.commit().await.map_err(CapsuleError::step("committing the snapshot"))?;
    steps.done("commit");
    failpoint!("pause.committed").await.map_err(CapsuleError::step("committing the snapshot"))?;
    Ok(snapshot)
}

/// Lets the capsule go on, in a new life.
async fn thaw(
    handover: &Handover<'_>,
    mut running: Box<RunningCapsule>,
    error: CapsuleError,
) -> PauseFailure {
    // Before it does: an agent that found both, and no word of the failure, would take the pause for complete, with a disk
    // that was written to since. One of an earlier pause is of no use to anybody either.
    let directory = handover.engine.paths.snapshot(&handover.spec.name());
    if let Err(also) = snapshot::withdraw(&directory).await {
        tracing::error!(error = %crate::report(&also), "the snapshot of a pause that failed is left");
        return PauseFailure::Stuck(running, error);
    }
    if let Err(also) = running.machine.resume_vcpus().await {
        tracing::error!(error = %crate::report(&also), "the capsule cannot be made to go on");
        return PauseFailure::Stuck(running, error);
    }
    let address = running.slot.guest_address();
    match reconnect(handover, running.machine.as_mut(), address).await {
        Ok(guest) => {
            failpoint!(sure "pause.thawed").await;
            running.begin_life(guest);
            PauseFailure::Running(running, error)
        }
        Err(also) => {
            tracing::warn!(error = %crate::report(&also), "the capsule goes on, but its guest does not answer yet");
            PauseFailure::Silent(running, error)
        }
    }
}

/// Takes the machine of a saved capsule apart. What fails is left to the next sweep: the capsule itself is safe.
pub async fn release(engine: &Engine, running: Box<RunningCapsule>) {
    if let Err(error) = running.into_parts().dismantle(engine).await {
        tracing::error!(%error, "a paused capsule left something behind");
    }
}
