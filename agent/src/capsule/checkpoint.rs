//! One moment of a capsule: its memory, devices and disk as they were together, or the disk alone, written aside while it
//! goes on.
//!
//! ```text
//!  guest runs                                      │ guest stands still    │ guest runs
//!  aside, base of memory, guest syncs, disk's cache│ state, changed pages, │ clock; manifest, fsync,
//!                                                  │ clone of the disk     │ rename by who asked
//! ```
//! Whatever can be done before the vCPUs stop, or after, is not done while they stand still. The life of the capsule
//! goes on over it: its connections and streams do not end, and its clock is stepped over the standstill where the VMM stops
//! it too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use wrenn_vmm::disk::{DiskStoreKind, DiskView};
use wrenn_vmm::failpoint;
use wrenn_vmm::snapshot::{Snapshot, SnapshotWriter};

use super::engine::Engine;
use super::error::CapsuleError;
use super::parts::RunningCapsule;
use super::registry::CapsuleRegistry;
use super::spec::name;
use super::steps::Steps;
use super::template::{Template, TemplateRecord};
use crate::guest::{CLOCK_PATIENCE, ClockReading, Guest};
use crate::ids::{CapsuleId, TemplateId};
use crate::request_id::RequestId;
use crate::token::Token;

/// What a moment holds of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// So that it can be restored.
    Whole,
    /// So that others can be booted from it. Such a moment never becomes a snapshot.
    Disk,
}

/// A capsule of one moment, not yet complete. Dropped, it leaves nothing.
pub struct Moment {
    pub writer: SnapshotWriter,
    /// How long the guest stood still for it.
    pub stopped: Duration,
    /// What it takes on the disk, without what it shares with other files.
    pub written_bytes: u64,
    /// The one that the guest in its memory asks for.
    pub token: Token,
    /// Processes that count as activity while they run.
    pub keep_awake: Vec<u32>,
}

/// What was written, and how long the guest stood still for it.
pub struct Taken {
    pub writer: SnapshotWriter,
    pub stopped: Duration,
    pub written_bytes: u64,
}

/// A moment that could not be taken.
pub enum TakeFailure {
    /// The capsule runs on.
    Running(CapsuleError),
    /// Its vCPUs stand still and cannot be made to go on.
    Stuck(CapsuleError),
}

/// Of a running capsule.
pub async fn of_running(
    engine: &Engine,
    running: &mut RunningCapsule,
    (scope, into): (Scope, &Path),
    request: &RequestId,
    steps: &mut Steps,
) -> Result<Taken, TakeFailure> {
    let mut writer = prepare(engine, running, (scope, into), request).await.map_err(TakeFailure::Running)?;
    steps.done("prepare");
    let clock = running.handle.guest.read_clock(request).await;
    let began = Instant::now();
    let saved = freeze(engine, running, scope, &mut writer).await;
    // Whatever became of it, also if it is not known whether they stopped.
    let resumed = running.machine.resume_vcpus().await;
    let stopped = began.elapsed();
    steps.done("stopped");
    if let (Ok(()), Some(clock)) = (&resumed, clock) {
        keep_time(&running.handle.guest, clock, request).await;
        steps.done("clock");
    }
    let outcome = match (resumed, saved) {
        (Err(error), _) => Err(TakeFailure::Stuck(CapsuleError::step("letting the vCPUs go on")(error))),
        (Ok(()), Err(error)) => Err(TakeFailure::Running(error)),
        (Ok(()), Ok(machine_bytes)) => Ok(machine_bytes),
    };
    match outcome {
        Ok(machine_bytes) => {
            let written_bytes = written(engine, &writer, machine_bytes);
            Ok(Taken { writer, stopped, written_bytes })
        }
        Err(failure) => {
            abort(writer).await;
            Err(failure)
        }
    }
}

/// All that can be done while the guest runs.
async fn prepare(
    engine: &Engine,
    running: &mut RunningCapsule,
    (scope, into): (Scope, &Path),
    request: &RequestId,
) -> Result<SnapshotWriter, CapsuleError> {
    let mut writer =
        SnapshotWriter::begin(into).await.map_err(CapsuleError::step("beginning the snapshot"))?;
    let prepared = async {
        if scope == Scope::Whole {
            let base = running.machine.prepare_save(&mut writer).await;
            base.map_err(CapsuleError::step("cloning the base of the memory"))?;
        }
        let guest = running.handle.guest.prepare_snapshot(request).await;
        guest.map_err(CapsuleError::guest("preparing the guest"))?;
        let disk = engine.disks.prepare_clone(running.disk.view()).await;
        disk.map_err(CapsuleError::step("writing out the disk"))?;
        failpoint!("moment.prepared").await.map_err(CapsuleError::step("preparing the guest"))
    };
    match prepared.await {
        Ok(()) => Ok(writer),
        Err(error) => {
            abort(writer).await;
            Err(error)
        }
    }
}

/// Gives a guest back the time that it stood still for. Relative to what it took for the time before: that may have been
/// its own doing.
async fn keep_time(guest: &Guest, before: ClockReading, request: &RequestId) {
    let Some(after) = guest.read_clock(request).await else { return };
    if let Some(lost_ns) = after.lost_since(before) {
        guest.give_time(lost_ns, request, CLOCK_PATIENCE).await;
    }
}

/// Memory and disk of the same moment: both while the vCPUs stand still. Answers how many bytes the machine took.
async fn freeze(
    engine: &Engine,
    running: &mut RunningCapsule,
    scope: Scope,
    writer: &mut SnapshotWriter,
) -> Result<u64, CapsuleError> {
    running.machine.stop_vcpus().await.map_err(CapsuleError::step("stopping the vCPUs"))?;
    failpoint!("moment.stopped").await.map_err(CapsuleError::step("stopping the vCPUs"))?;
    let disk = writer.disk_path();
    let save = async {
        match scope {
            Scope::Whole => {
                running.machine.save(writer).await.map(|saved| saved.memory_written_bytes + saved.state_bytes)
            }
            Scope::Disk => Ok(0),
        }
    };
    let (saved, disk) = tokio::join!(save, engine.disks.clone_stopped(running.disk.view(), &disk));
    let saved = saved.map_err(CapsuleError::step("saving the machine"))?;
    disk.map_err(CapsuleError::step("cloning the disk"))?;
    failpoint!("moment.saved").await.map_err(CapsuleError::step("saving the machine"))?;
    Ok(saved)
}

/// Of a paused capsule: what it waits as, once more.
pub async fn of_paused(
    engine: &Engine,
    paused: &Snapshot,
    (scope, into): (Scope, &Path),
) -> Result<Taken, CapsuleError> {
    let mut writer =
        SnapshotWriter::begin(into).await.map_err(CapsuleError::step("beginning the snapshot"))?;
    let copied = async {
        if scope == Scope::Whole {
            writer.copy_machine(paused).await.map_err(CapsuleError::step("cloning the memory"))?;
        }
        let disk = DiskView { path: paused.disk() };
        let cloned = engine.disks.clone_frozen(&disk, &writer.disk_path()).await;
        cloned.map(drop).map_err(CapsuleError::step("cloning the disk"))
    };
    match copied.await {
        Ok(()) => {
            let written_bytes = written(engine, &writer, paused.manifest().state.bytes);
            Ok(Taken { writer, stopped: Duration::ZERO, written_bytes })
        }
        Err(error) => {
            abort(writer).await;
            Err(error)
        }
    }
}

/// What a moment takes on the disk where `machine_bytes` of it are in no other file.
fn written(engine: &Engine, writer: &SnapshotWriter, machine_bytes: u64) -> u64 {
    match engine.disks.kind() {
        DiskStoreKind::Reflink => machine_bytes,
        DiskStoreKind::DmSnapshot | DiskStoreKind::Copy => super::usage::own_bytes(writer.directory()),
    }
}

async fn abort(writer: SnapshotWriter) {
    if let Err(left) = writer.abort().await {
        tracing::warn!(error = %crate::report(&left), "half a snapshot is left");
    }
}

/// What is told of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub vcpus: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    pub written_bytes: u64,
    pub stopped_us: u64,
}

impl Checkpoint {
    fn of(template: &Template) -> Self {
        let (vcpus, memory_mib, disk_mib) = template.size();
        let TemplateRecord { written_bytes, stopped_us, .. } = template.record;
        Self { vcpus, memory_mib, disk_mib, written_bytes, stopped_us }
    }
}

impl CapsuleRegistry {
    /// Makes a template of a capsule as it is now, running or paused. One that was made of this capsule before is
    /// answered with as it is.
    pub async fn checkpoint(
        &self,
        id: CapsuleId,
        template: TemplateId,
        request: RequestId,
    ) -> Result<Checkpoint, CapsuleError> {
        let engine = self.engine();
        // To its end, also when the agent stops.
        engine.tasks.track_future(self.make_template(id, template, request)).await
    }

    async fn make_template(
        &self,
        id: CapsuleId,
        template: TemplateId,
        request: RequestId,
    ) -> Result<Checkpoint, CapsuleError> {
        let engine = self.engine();
        let _turn = engine.template_turns.take(template).await;
        if let Some(there) = Template::open(&engine.paths, template).await? {
            let source_id = there.record.source;
            let taken = CapsuleError::TemplateTaken { template, source_id };
            return if source_id == id { Ok(Checkpoint::of(&there)) } else { Err(taken) };
        }
        let spec = self.get(id)?.spec.clone();
        let mut steps = Steps::start("checkpoint");
        let made = async {
            engine.admission.admit_to_disk(spec.memory_mib.into())?;
            let moment =
                self.moment(id, Scope::Whole, engine.paths.template(&name(template)), request).await?;
            steps.done("moment");
            failpoint!("snapshot.taken").await.map_err(CapsuleError::step("taking the moment"))?;
            let disk = DiskView { path: moment.writer.disk_path() };
            engine.disks.flatten(&disk).await.map_err(CapsuleError::step("making the disk whole"))?;
            steps.done("flatten");
            failpoint!("snapshot.flattened").await.map_err(CapsuleError::step("making the disk whole"))?;
            let written_bytes = written(engine, &moment.writer, moment.written_bytes);
            let stopped_us = u64::try_from(moment.stopped.as_micros()).unwrap_or(u64::MAX);
            let record = TemplateRecord::new(&spec, moment.token, written_bytes, stopped_us);
            record
                .store(moment.writer.directory())
                .map_err(CapsuleError::step("writing the template's record"))?;
            failpoint!("snapshot.recorded")
                .await
                .map_err(CapsuleError::step("writing the template's record"))?;
            let snapshot =
                moment.writer.commit().await.map_err(CapsuleError::step("committing the snapshot"))?;
            steps.done("commit");
            Ok(Checkpoint::of(&Template { record, snapshot }))
        };
        match made.await {
            Ok(checkpoint) => {
                steps.finish();
                Ok(checkpoint)
            }
            Err(error) => {
                steps.fail(&error);
                Err(error)
            }
        }
    }

    /// The capsule as it is now, written aside of `into`.
    pub(super) async fn moment(
        &self,
        id: CapsuleId,
        scope: Scope,
        into: PathBuf,
        request: RequestId,
    ) -> Result<Moment, CapsuleError> {
        self.ask(id, |reply| super::driver::Request::Capture { scope, into, request, reply }).await
    }
}
