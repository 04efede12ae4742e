//! Golden snapshots: each template is booted once on this host, and every capsule of it is a restore.
//!
//! One builder per snapshot; whoever else wants it waits for the same one. A builder belongs to no
//! request: it goes on when the one that started it is gone. Its guest never gets a token or an identity.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;
use wrenn_vmm::disk::{self, AttachedDisk, DiskView};
use wrenn_vmm::driver::{BootRequest, KernelImage, MachineConfig, VmmIdentity};
use wrenn_vmm::failpoint;
use wrenn_vmm::paths::{self, CapsulePaths, GoldenKey, Name};
use wrenn_vmm::snapshot::{Snapshot, SnapshotError, SnapshotWriter};

use super::aside::remove_at_once;
use super::engine::Engine;
use super::error::{CapsuleError, Teardown, TeardownError};
use super::golden_budget;
use super::launch::{acquire_slot, vmm_died};
use super::parts::Parts;
use super::spec::{CapsuleSpec, name};
use super::steps::Steps;
use crate::guest::Guest;
use crate::request_id::RequestId;

/// For the first answer of a guest whose daemon accepted a connection.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

type Outcome = Result<Arc<Snapshot>, CapsuleError>;

/// The golden snapshots of this host, by directory.
#[derive(Default)]
pub struct Goldens(Mutex<HashMap<PathBuf, Entry>>);

enum Entry {
    Ready(Arc<Snapshot>),
    Building(watch::Receiver<Option<Outcome>>),
}

impl Entry {
    fn building(&self) -> Option<watch::Receiver<Option<Outcome>>> {
        match self {
            Self::Building(outcome) => Some(outcome.clone()),
            Self::Ready(_) => None,
        }
    }

    /// Whether somebody builds it or starts from it just now.
    fn is_in_use(&self) -> bool {
        match self {
            Self::Building(_) => true,
            Self::Ready(snapshot) => Arc::strong_count(snapshot) > 1,
        }
    }
}

/// Removes what was [withdrawn](Goldens::withdraw) from `directory`. What runs from it holds its own links.
async fn discard(
    engine: &Engine,
    directory: &Path,
    aside: io::Result<Option<PathBuf>>,
) -> Result<(), TeardownError> {
    let mut teardown = Teardown::default();
    engine.pool.forget(directory);
    if let Some(aside) = teardown.note("setting the golden snapshot aside", aside).flatten() {
        if let Ok(snapshot) = Snapshot::open(&aside).await {
            teardown.note("letting its memory go", engine.vmm.forget(&snapshot).await);
        }
        teardown.note("removing the golden snapshot", tokio::fs::remove_dir_all(&aside).await);
    }
    teardown.finish()
}

/// What to build, where.
struct Plan {
    directory: PathBuf,
    image: PathBuf,
    kernel: KernelImage,
    machine: MachineConfig,
    disk_mib: u32,
}

impl Goldens {
    /// The snapshot that a capsule of this spec starts from; booted now if this host has none yet.
    pub async fn obtain(engine: &Arc<Engine>, spec: &CapsuleSpec) -> Outcome {
        let plan = Plan::of(engine, spec)?;
        let mut outcome = {
            let mut entries = engine.goldens.entries();
            match entries.get(&plan.directory) {
                Some(Entry::Ready(snapshot)) if snapshot.directory().is_dir() => {
                    golden_budget::mark_used(snapshot.directory());
                    return Ok(snapshot.clone());
                }
                Some(Entry::Building(outcome)) => outcome.clone(),
                _ => {
                    let (sender, outcome) = watch::channel(None);
                    entries.insert(plan.directory.clone(), Entry::Building(outcome.clone()));
                    let engine_of_task = engine.clone();
                    let build = async move { build_or_open(&engine_of_task, plan, &sender).await };
                    engine.tasks.spawn(build.in_current_span());
                    outcome
                }
            }
        };
        let built = outcome.wait_for(Option::is_some).await.map_err(|_| CapsuleError::Stopping)?;
        built.clone().unwrap_or(Err(CapsuleError::Stopping))
    }

    /// Removes all of one template, once what is being built of it is built.
    pub async fn remove_all_of(engine: &Arc<Engine>, template: &Name) -> Result<(), TeardownError> {
        let directory = engine.paths.goldens_of(template);
        let building: Vec<_> = {
            let entries = engine.goldens.entries();
            let of_it = entries.iter().filter(|(path, _)| path.starts_with(&directory));
            of_it.filter_map(|(_, entry)| entry.building()).collect()
        };
        for mut outcome in building {
            let _whatever_it_was = outcome.wait_for(Option::is_some).await;
        }
        let mut teardown = Teardown::default();
        for golden in golden_budget::list(&directory) {
            let aside = engine.goldens.withdraw(&golden.path, |_| true);
            teardown.merge(discard(engine, &golden.path, aside).await);
        }
        teardown.note("removing the directory of golden snapshots", remove_at_once(&directory).await);
        teardown.finish()
    }

    /// Removes the least recently used ones while all together take more than their budget, but none that is being
    /// built or started from.
    pub async fn keep_to_budget(engine: &Arc<Engine>) {
        let all = golden_budget::list_below(&engine.paths.golden_root());
        for golden in golden_budget::surplus(all, engine.golden_budget_mib << 20) {
            // Who makes capsules of it ahead is not starting from it.
            engine.pool.forget(&golden.path);
            let aside = engine.goldens.withdraw(&golden.path, |entry| !entry.is_in_use());
            if matches!(&aside, Ok(None)) {
                continue;
            }
            tracing::info!(golden = %golden.path.display(), bytes = golden.bytes, "beyond the budget");
            metrics::counter!("wrenn_goldens_evicted_total").increment(1);
            if let Err(error) = discard(engine, &golden.path, aside).await {
                tracing::warn!(golden = %golden.path.display(), %error, "a golden snapshot is left");
            }
        }
    }

    /// Takes one out of its place if it may go; answers with where it is then. All under the lock, so that whoever
    /// looks for it next finds nothing and builds it anew.
    fn withdraw(&self, directory: &Path, may_go: impl FnOnce(&Entry) -> bool) -> io::Result<Option<PathBuf>> {
        let mut entries = self.entries();
        if entries.get(directory).is_some_and(|entry| !may_go(entry)) {
            return Ok(None);
        }
        entries.remove(directory);
        paths::set_aside(directory).map(Some)
    }

    /// Where those will be that are being made.
    pub fn being_made(&self) -> Vec<PathBuf> {
        let entries = self.entries();
        entries.iter().filter(|(_, entry)| entry.building().is_some()).map(|(path, _)| path.clone()).collect()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<PathBuf, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn of(engine: &Engine, spec: &CapsuleSpec) -> Result<Self, CapsuleError> {
        let image = engine.paths.image(&name(spec.template_team), &name(spec.template));
        let fingerprint = image_fingerprint(&image)
            .ok_or_else(|| CapsuleError::NoImage { template: spec.template.to_string() })?;
        let least_mib = fingerprint.bytes.div_ceil(1 << 20);
        if u64::from(spec.disk_mib) < least_mib {
            return Err(CapsuleError::Invalid {
                field: "diskMib",
                message: format!(
                    "the template's image needs a disk of {least_mib} MiB or more, not {}",
                    spec.disk_mib
                ),
            });
        }
        let kernel = engine.paths.current_kernel().map_err(CapsuleError::step("finding the guest kernel"))?;
        let machine = MachineConfig { vcpus: spec.vcpus, memory_mib: spec.memory_mib };
        let identity = engine.vmm.identity(&kernel);
        let key = GoldenKey::new(&machine, spec.disk_mib, &identity, &[&fingerprint.text]);
        let directory = engine.paths.golden(&name(spec.template), &key);
        Ok(Self { directory, image, kernel, machine, disk_mib: spec.disk_mib })
    }
}

struct Fingerprint {
    bytes: u64,
    text: String,
}

/// Changes whenever the image is written anew. Images are replaced, never changed, so their time of change
/// stands for their content; reading them all for every capsule would cost more than a restore.
fn image_fingerprint(image: &Path) -> Option<Fingerprint> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(image).ok().filter(std::fs::Metadata::is_file)?;
    let text =
        format!("{}:{}:{}.{}", metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    Some(Fingerprint { bytes: metadata.len(), text })
}

async fn build_or_open(engine: &Arc<Engine>, plan: Plan, sender: &watch::Sender<Option<Outcome>>) {
    let directory = plan.directory.clone();
    let outcome = match open(&plan.directory, &engine.vmm.identity(&plan.kernel)).await {
        Ok(Some(snapshot)) => {
            golden_budget::mark_used(snapshot.directory());
            Ok(Arc::new(snapshot))
        }
        Ok(None) => build(engine, &plan).await.map(Arc::new),
        Err(error) => Err(error),
    };
    {
        let mut entries = engine.goldens.entries();
        match &outcome {
            Ok(snapshot) => entries.insert(plan.directory, Entry::Ready(snapshot.clone())),
            Err(_) => entries.remove(&plan.directory),
        };
    }
    sender.send_replace(Some(outcome));
    for stale in stale(&directory) {
        let aside = engine.goldens.withdraw(&stale, |_| true);
        if let Err(error) = discard(engine, &stale, aside).await {
            tracing::warn!(golden = %stale.display(), %error, "a stale golden snapshot is left");
        }
    }
    Goldens::keep_to_budget(engine).await;
}

/// One that an earlier agent made, if it can be restored here.
async fn open(directory: &Path, host: &VmmIdentity) -> Result<Option<Snapshot>, CapsuleError> {
    match Snapshot::open(directory).await {
        Ok(snapshot) => match snapshot.manifest().identity.check_restorable_on(host) {
            Ok(()) => Ok(Some(snapshot)),
            Err(mismatch) => {
                tracing::info!(golden = %directory.display(), %mismatch, "booting the template anew");
                Ok(None)
            }
        },
        Err(SnapshotError::Missing { .. }) => Ok(None),
        Err(error) => {
            tracing::warn!(golden = %directory.display(), error = %crate::report(&error), "booting the template anew");
            Ok(None)
        }
    }
}

async fn build(engine: &Arc<Engine>, plan: &Plan) -> Result<Snapshot, CapsuleError> {
    let mut steps = Steps::start("golden");
    let unique = format!("golden-{}", uuid::Uuid::now_v7().simple());
    let home = Name::from_str(&unique).map_err(CapsuleError::step("naming the golden machine"))?;
    let home = engine.paths.capsule(&home);
    let mut parts = Parts::default();
    let outcome = boot_and_save(engine, plan, &home, &mut parts, &mut steps).await;
    if let Err(left) = parts.dismantle(engine).await {
        tracing::error!(error = %left, "a golden machine left something behind");
    }
    if let Err(left) = home.remove() {
        tracing::error!(error = %left, "a golden machine left something behind");
    }
    steps.done("dismantle");
    failpoint!("golden.dismantled").await.map_err(CapsuleError::step("taking the golden machine apart"))?;
    match outcome {
        Ok(snapshot) => {
            steps.finish();
            Ok(snapshot)
        }
        Err(error) => {
            steps.fail(&error);
            Err(error)
        }
    }
}

async fn boot_and_save(
    engine: &Engine,
    plan: &Plan,
    home: &CapsulePaths,
    parts: &mut Parts,
    steps: &mut Steps,
) -> Result<Snapshot, CapsuleError> {
    let deadline = Instant::now() + engine.golden_timeout;
    let memory_mib = plan.machine.memory_mib;
    let _room = engine.room(1, memory_mib, memory_mib.into()).await?;
    home.create().map_err(CapsuleError::step("making the golden machine's directories"))?;
    failpoint!("golden.home").await.map_err(CapsuleError::step("making the golden machine"))?;
    let (slot, disk) = tokio::join!(acquire_slot(engine), install_disk(engine, plan, home));
    let (slot, disk) = match (slot, disk) {
        (Ok(slot), Ok(disk)) => (&*parts.slot.insert(slot), &*parts.disk.insert(disk)),
        (slot, disk) => {
            let error = slot.as_ref().err().or(disk.as_ref().err()).cloned();
            (parts.slot, parts.disk) = (slot.ok(), disk.ok());
            return Err(error.unwrap_or(CapsuleError::Stopping));
        }
    };
    steps.done("slot+disk");
    failpoint!("golden.parts").await.map_err(CapsuleError::step("making the golden machine"))?;

    let request = BootRequest {
        config: plan.machine,
        kernel: &plan.kernel,
        disk,
        slot,
        home,
        deadline: deadline.saturating_duration_since(Instant::now()),
    };
    let booted = engine.vmm.boot(request).await.map_err(CapsuleError::step("booting the template"))?;
    let machine = parts.machine.insert(booted);
    steps.done("boot");
    failpoint!("golden.booted").await.map_err(CapsuleError::step("booting the template"))?;

    let exit = machine.process().clone();
    let ready = tokio::select! {
        ready = get_ready(slot.guest_address(), &engine.name_servers, deadline) => ready,
        exit = exit.exited() => Err(vmm_died(exit)),
    };
    if let Err(error) = ready {
        let console = machine.console().await.unwrap_or_default();
        tracing::error!(error = %crate::report(&error), console = last_lines(&console), "the template did not come up");
        return Err(error);
    }
    steps.done("guest");
    failpoint!("golden.ready").await.map_err(CapsuleError::step("preparing the guest"))?;

    machine.stop_vcpus().await.map_err(CapsuleError::step("stopping the vCPUs"))?;
    let mut writer =
        SnapshotWriter::begin(&plan.directory).await.map_err(CapsuleError::step("beginning the snapshot"))?;
    failpoint!("golden.begun").await.map_err(CapsuleError::step("beginning the snapshot"))?;
    machine.save(&mut writer).await.map_err(CapsuleError::step("saving the machine"))?;
    failpoint!("golden.saved").await.map_err(CapsuleError::step("saving the machine"))?;
    engine
        .disks
        .clone_stopped(disk.view(), &writer.disk_path())
        .await
        .map_err(CapsuleError::step("cloning the disk"))?;
    failpoint!("golden.cloned").await.map_err(CapsuleError::step("cloning the disk"))?;
    let snapshot = writer.commit().await.map_err(CapsuleError::step("committing the snapshot"))?;
    failpoint!("golden.committed").await.map_err(CapsuleError::step("committing the snapshot"))?;
    steps.done("save");
    Ok(snapshot)
}

async fn install_disk(
    engine: &Engine,
    plan: &Plan,
    home: &CapsulePaths,
) -> Result<AttachedDisk, CapsuleError> {
    let path = home.disk();
    disk::install_image(&plan.image, &path).await.map_err(CapsuleError::step("copying the image"))?;
    disk::extend(&path, plan.disk_mib).await.map_err(CapsuleError::step("growing the disk"))?;
    engine.disks.attach(&DiskView { path }).await.map_err(CapsuleError::step("attaching the disk"))
}

/// Waits for envd, then lets it prepare: it syncs, and runs once what every capsule runs first, so that the
/// code for it lies in memory.
async fn get_ready(
    address: Ipv4Addr,
    name_servers: &[Ipv4Addr],
    deadline: Instant,
) -> Result<(), CapsuleError> {
    let guest = Guest::connect(address, None, deadline)
        .await
        .map_err(|_| CapsuleError::GuestTimeout { step: "its boot" })?;
    guest.health(HEALTH_TIMEOUT).await.map_err(CapsuleError::step("asking the guest's health"))?;
    guest.configure_golden(name_servers).await.map_err(CapsuleError::step("configuring the guest"))?;
    guest.prepare_snapshot(&RequestId::new()).await.map_err(CapsuleError::step("preparing the guest"))
}

/// Snapshots of the same template and size that an older image, kernel or VMM left.
fn stale(current: &Path) -> Vec<PathBuf> {
    let size = |path: &Path| {
        let (size, _versions) = path.file_name()?.to_str()?.rsplit_once('-')?;
        Some(size.to_owned())
    };
    let Some(parent) = current.parent() else { return Vec::new() };
    let others = golden_budget::list(parent).into_iter().map(|golden| golden.path);
    others.filter(|path| path != current && size(path) == size(current)).collect()
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_older_versions_of_the_same_size_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1-256-5120-qemu-tcg-aa", "1-256-5120-qemu-tcg-bb", "2-256-5120-qemu-tcg-aa"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let current = dir.path().join("1-256-5120-qemu-tcg-bb");
        assert_eq!(stale(&current), [dir.path().join("1-256-5120-qemu-tcg-aa")]);
    }

    #[test]
    fn a_rewritten_image_has_another_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("rootfs.ext4");
        assert!(image_fingerprint(&image).is_none());
        std::fs::write(&image, b"one").unwrap();
        let before = image_fingerprint(&image).unwrap();
        std::fs::write(dir.path().join("new"), b"two").unwrap();
        std::fs::rename(dir.path().join("new"), &image).unwrap();
        assert_ne!(image_fingerprint(&image).unwrap().text, before.text);
    }
}
