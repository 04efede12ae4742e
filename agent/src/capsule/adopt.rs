//! What an earlier agent left: adopted where it lives, finished or undone where it was half done, and removed
//! where nobody claims it.
//!
//! First everything is looked at, because the network may only be set up once it is known which slots
//! live; then it is settled, capsule by capsule.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use futures_util::future::join_all;
use wrenn_vmm::disk::DiskView;
use wrenn_vmm::driver::{Driver as Vmm, DriverError, Machine};
use wrenn_vmm::network::{SlotNumber, SlotRange};
use wrenn_vmm::paths::{CapsulePaths, HostPaths, Name};
use wrenn_vmm::process::ProcessError;
use wrenn_vmm::snapshot::{self, Snapshot};

use super::driver::Body;
use super::engine::Engine;
use super::error::CapsuleError;
use super::handover::Handover;
use super::launch::restrict;
use super::parts::Parts;
use super::pause::PausedCapsule;
use super::reconnect::UnheardCapsule;
use super::record::{Durability, Record, RecordError, RecordFile};
use super::registry::CapsuleRegistry;
use super::spec::name;
use super::strays;
use super::view::{Cause, State};
use crate::ids::CapsuleId;
use crate::request_id::RequestId;

#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("cannot list {}", path.display())]
    List {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A capsule of an earlier agent.
enum Found {
    /// Its VMM lives.
    Live(Box<Record>, Box<dyn Machine>),
    /// It ran, and its VMM does not any more.
    Ended(Box<Record>, End),
    /// Nothing of it runs.
    Still(Box<Record>),
}

/// How a VMM ended.
enum End {
    /// By itself.
    Died(Cause),
    /// By this agent, which could not adopt it.
    OutOfHand(DriverError),
}

/// Everything an earlier agent left in its directory.
pub struct Leftovers {
    found: Vec<Found>,
    /// Capsules whose records cannot be read: what there is of them on disk may be somebody's only copy.
    unreadable: HashSet<String>,
    slots: BTreeSet<SlotNumber>,
}

impl Leftovers {
    /// Looks at every record and ends the machines that no record claims.
    pub async fn inspect(paths: &HostPaths, vmm: &dyn Vmm, slots: &SlotRange) -> Result<Self, AdoptError> {
        let mut left = Self { found: Vec::new(), unreadable: HashSet::new(), slots: BTreeSet::new() };
        for (name, path) in list(&paths.capsules())? {
            match load(paths, &name) {
                Ok(Some(record)) => left.look_at(record, vmm).await,
                Ok(None) => {
                    tracing::info!(path = %path.display(), "removing what no record claims");
                    remove(&path);
                }
                Err(error) => {
                    let error = crate::report(&error);
                    tracing::error!(
                        capsule = name,
                        error,
                        "not adopted; its disk and snapshot are kept for a person to look at"
                    );
                    left.unreadable.insert(name);
                }
            }
        }
        strays::end(slots.iter().filter(|slot| !left.slots.contains(slot))).await;
        Ok(left)
    }

    /// Slots that capsules run in.
    pub fn slots(&self) -> &BTreeSet<SlotNumber> {
        &self.slots
    }

    async fn look_at(&mut self, mut record: Record, vmm: &dyn Vmm) {
        let Some(machine) = record.machine.take() else {
            return self.found.push(Found::Still(Box::new(record)));
        };
        if !matches!(record.state, State::Running | State::Pausing) {
            strays::kill(&machine.process).await;
            return self.found.push(Found::Still(Box::new(record)));
        }
        let found = match vmm.adopt(&machine).await {
            Ok(adopted) => {
                self.slots.insert(machine.slot);
                record.machine = Some(machine);
                Found::Live(Box::new(record), adopted)
            }
            Err(DriverError::Process(ProcessError::Gone(_) | ProcessError::NotTheSame { .. })) => {
                let cause = Cause::new("VMM_DIED", "the VMM ended while no agent was there to see it");
                Found::Ended(Box::new(record), End::Died(cause))
            }
            Err(error) => {
                let end = if strays::kill(&machine.process).await {
                    End::OutOfHand(error)
                } else {
                    End::Died(Cause::new("VMM_DIED", crate::report(&error)))
                };
                Found::Ended(Box::new(record), end)
            }
        };
        self.found.push(found);
    }

    /// Finishes or undoes what was under way, adopts what lives, and removes the rest.
    pub async fn settle(self, engine: &Engine, registry: &CapsuleRegistry) {
        let mut known = self.unreadable;
        known.extend(self.found.iter().map(|found| match found {
            Found::Live(record, _) | Found::Ended(record, _) | Found::Still(record) => {
                record.spec.id.to_string()
            }
        }));
        join_all(self.found.into_iter().map(|found| async move {
            match found {
                Found::Live(record, machine) => settle_live(engine, registry, *record, machine).await,
                Found::Ended(record, end) => settle_ended(engine, registry, *record, end).await,
                Found::Still(record) => settle_still(engine, registry, *record).await,
            }
        }))
        .await;
        sweep(&engine.paths, &known).await;
        // Those of capsules that live are attached again.
        if let Err(error) = engine.disks.sweep().await {
            tracing::error!(error = %crate::report(&error), "disks that no record claims are left attached");
        }
    }
}

async fn settle_live(
    engine: &Engine,
    registry: &CapsuleRegistry,
    mut record: Record,
    machine: Box<dyn Machine>,
) {
    let id = record.spec.id;
    let mut parts = Parts { machine: Some(machine), ..Parts::default() };
    if let Some(snapshot) = completed_pause(engine, &record).await {
        claim(engine, &record, &mut parts).await;
        if let Err(error) = parts.dismantle(engine).await {
            tracing::error!(capsule = %id, %error, "a paused capsule left something behind");
        }
        return settle_paused(engine, registry, record, snapshot).await;
    }
    match take_over(engine, &record, parts).await {
        Ok(unheard) => {
            let body = listen(engine, &record, unheard).await;
            if record.state != State::Running {
                record.enter(State::Running, None);
                store(engine, &record).await;
            }
            registry.adopt(record, body);
        }
        Err(error) => settle_broken(engine, registry, record, &error).await,
    }
}

async fn settle_ended(engine: &Engine, registry: &CapsuleRegistry, mut record: Record, end: End) {
    if let Some(snapshot) = completed_pause(engine, &record).await {
        clear_half_made(engine, &record).await;
        return settle_paused(engine, registry, record, snapshot).await;
    }
    match end {
        End::Died(cause) => {
            tracing::error!(capsule = %record.spec.id, cause = cause.message, "the capsule is lost");
            remove_files(engine, record.spec.id).await;
            record.enter(State::Stopped, Some(cause));
            registry.remember(record);
        }
        End::OutOfHand(error) => settle_broken(engine, registry, record, &error).await,
    }
}

/// A capsule whose machine had to be ended, though it lived.
async fn settle_broken(
    engine: &Engine,
    registry: &CapsuleRegistry,
    mut record: Record,
    error: &(dyn std::error::Error + Sync),
) {
    let error = crate::report(error);
    tracing::error!(capsule = %record.spec.id, error, "not adopted; its disk is kept");
    record.machine = None;
    record.enter(State::Error, Some(Cause::new("NOT_ADOPTED", error)));
    store(engine, &record).await;
    registry.adopt(record, Body::Broken);
}

/// Writes down a pause that was complete but for that. Its machine has ended.
async fn settle_paused(engine: &Engine, registry: &CapsuleRegistry, mut record: Record, snapshot: Snapshot) {
    record.machine = None;
    record.enter(State::Paused, None);
    store(engine, &record).await;
    tracing::info!(capsule = %record.spec.id, "its pause was complete");
    registry.adopt(record, Body::Paused(PausedCapsule { snapshot: Box::new(snapshot) }));
}

/// The snapshot of a pause that was only not yet written down.
async fn completed_pause(engine: &Engine, record: &Record) -> Option<Snapshot> {
    if record.state != State::Pausing {
        return None;
    }
    let snapshot = Snapshot::open(&engine.paths.snapshot(&record.spec.name())).await.ok()?;
    (snapshot.manifest().created_at_ns >= record.since_ns).then_some(snapshot)
}

/// Takes back the slot and the disk of a machine that lives.
async fn claim(engine: &Engine, record: &Record, parts: &mut Parts) -> Option<CapsuleError> {
    let mut failed = None;
    if let Some(machine) = &record.machine {
        match engine.slots.claim(machine.slot).await {
            Ok(slot) => parts.slot = Some(slot),
            Err(error) => failed = Some(CapsuleError::step("claiming the network slot")(error)),
        }
    }
    let home = engine.paths.capsule(&record.spec.name());
    match engine.disks.attach(&DiskView { path: home.disk() }).await {
        Ok(disk) => parts.disk = Some(disk),
        Err(error) => failed = Some(CapsuleError::step("attaching the disk")(error)),
    }
    failed
}

/// A capsule that runs on under this agent. One whose parts cannot be taken back is ended.
async fn take_over(
    engine: &Engine,
    record: &Record,
    mut parts: Parts,
) -> Result<UnheardCapsule, CapsuleError> {
    let failed = claim(engine, record, &mut parts).await;
    match (failed, parts) {
        (None, Parts { machine: Some(machine), slot: Some(mut slot), disk: Some(disk) }) => {
            // So that its questions for names are answered again. The rules that the earlier agent made are there all
            // the while.
            if let Err(error) = restrict(engine, &mut slot, &record.spec).await {
                tracing::error!(capsule = %record.spec.id, error = %crate::report(&error), "its names are not answered");
            }
            let home = engine.paths.capsule(&record.spec.name());
            Ok(UnheardCapsule::new(machine, slot, disk, home, engine.grace))
        }
        (failed, parts) => {
            if let Err(error) = parts.dismantle_but_disk(engine).await {
                tracing::error!(capsule = %record.spec.id, %error, "a lost capsule left something behind");
            }
            Err(failed.unwrap_or(CapsuleError::Destroyed(record.spec.id)))
        }
    }
}

/// Running, as its guest answers, or running on until it does: that is its driver's to wait for.
async fn listen(engine: &Engine, record: &Record, mut unheard: UnheardCapsule) -> Body {
    let Record { spec, token, .. } = record;
    let heard =
        unheard.ask(&Handover { engine, spec, token, request: &RequestId::new(), goes_on: true }).await;
    match heard {
        Ok(guest) => {
            tracing::info!(capsule = %spec.id, "adopted");
            Body::Running(Box::new(unheard.served(guest)))
        }
        Err(error) => {
            let error = crate::report(&error);
            tracing::warn!(capsule = %spec.id, error, "adopted, but its guest does not answer yet");
            Body::Unheard(Box::new(unheard))
        }
    }
}

async fn settle_still(engine: &Engine, registry: &CapsuleRegistry, mut record: Record) {
    let id = record.spec.id;
    match record.state {
        State::Paused | State::Resuming => {
            match Snapshot::open(&engine.paths.snapshot(&record.spec.name())).await {
                Ok(snapshot) => {
                    clear_half_made(engine, &record).await;
                    if record.state == State::Resuming {
                        record.enter(State::Paused, None);
                        store(engine, &record).await;
                    }
                    registry.adopt(record, Body::Paused(PausedCapsule { snapshot: Box::new(snapshot) }));
                }
                Err(error) => {
                    tracing::error!(capsule = %id, error = %crate::report(&error), "its snapshot is not usable");
                    record.enter(State::Error, Some(Cause::new("SNAPSHOT_UNUSABLE", crate::report(&error))));
                    store(engine, &record).await;
                    registry.adopt(record, Body::Broken);
                }
            }
        }
        State::Error => registry.adopt(record, Body::Broken),
        // Whoever asked for it was told nothing yet, and asks again.
        State::Starting => remove_files(engine, id).await,
        // `running` without a machine is not written by anybody.
        State::Stopping | State::Stopped | State::Running | State::Pausing => {
            remove_files(engine, id).await;
            let cause =
                record.cause.take().unwrap_or_else(|| Cause::new("DESTROYED", "the capsule was destroyed"));
            record.enter(State::Stopped, Some(cause));
            registry.remember(record);
        }
    }
}

/// What a life that never began, or one that ended while nobody watched, left in the home of a paused capsule.
async fn clear_half_made(engine: &Engine, record: &Record) {
    let home = engine.paths.capsule(&record.spec.name());
    remove_disk(engine, &home).await;
    for path in home.of_machine() {
        remove(&path);
    }
}

async fn store(engine: &Engine, record: &Record) {
    let file = RecordFile::at(engine.paths.capsule(&record.spec.name()).record());
    if let Err(error) = file.store(record, Durability::Power).await {
        tracing::error!(capsule = %record.spec.id, error = %crate::report(&error), "the record was not written");
    }
}

async fn remove_files(engine: &Engine, id: CapsuleId) {
    let name = name(id);
    remove(&engine.paths.snapshot(&name));
    let home = engine.paths.capsule(&name);
    remove_disk(engine, &home).await;
    if let Err(error) = home.remove() {
        tracing::error!(capsule = %id, %error, "not all of it could be removed");
    }
}

async fn remove_disk(engine: &Engine, home: &CapsulePaths) {
    if let Err(error) = engine.disks.remove(DiskView { path: home.disk() }).await {
        let home = home.directory.display();
        tracing::error!(%home, error = %crate::report(&error), "a leftover disk could not be removed");
    }
}

/// Removes snapshots, sockets and half-made files of nobody.
async fn sweep(paths: &HostPaths, known: &HashSet<String>) {
    for directory in [paths.snapshots(), paths.run().to_owned()] {
        for (name, path) in list(&directory).unwrap_or_default() {
            // Files there are the VMM driver's own notes.
            if !known.contains(&name) && path.is_dir() {
                tracing::info!(path = %path.display(), "removing what no record claims");
                remove(&path);
            }
        }
    }
    // Copies that were being started from it have gone with their agent.
    for (_, fork) in list(&paths.forks()).unwrap_or_default() {
        tracing::info!(path = %fork.display(), "removing a fork point");
        remove(&fork);
    }
    for of_templates in [paths.golden_root(), paths.templates(), paths.images()] {
        if let Err(error) = snapshot::sweep_partials(&of_templates).await {
            tracing::error!(%error, "half-made templates could not be removed");
        }
    }
}

fn load(paths: &HostPaths, directory: &str) -> Result<Option<Record>, RecordError> {
    match (CapsuleId::from_str(directory), Name::from_str(directory)) {
        (Ok(_), Ok(name)) => RecordFile::at(paths.capsule(&name).record()).load(),
        _ => Ok(None),
    }
}

fn list(directory: &Path) -> Result<Vec<(String, PathBuf)>, AdoptError> {
    let failed = |source| AdoptError::List { path: directory.to_owned(), source };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(entries)
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::error!(path = %path.display(), %error, "a leftover could not be removed");
    }
}
