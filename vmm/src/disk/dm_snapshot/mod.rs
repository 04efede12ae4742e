//! Views by device-mapper, on file systems that cannot share blocks.
//!
//! ```text
//!  /dev/dm-N          what the VMM opens: reads of what was not changed go to the base
//!   │ snapshot target, persistent
//!   ├─ /dev/loopC     this view's own
//!   │   └─ disk.ext4         what was changed, sparse: see `changes`
//!   └─ /dev/dm-M      read-only, one for each earlier life, if there was any
//!       │ snapshot target, persistent
//!       ├─ /dev/loopB     read-only, this view's own as well
//!       │   └─ disk.ext4.1       a hard link of what was changed in that life
//!       └─ /dev/loopA     read-only, one for each base, shared by all views of it
//!           └─ disk.ext4.base    a hard link of the snapshot's disk that the first view was made of
//! ```
//! A view is its files, and nothing but them: no list says which base belongs to which view, a snapshot or a base may
//! be removed while there are views of it, and what nobody has a link of any more is gone. A disk without a base beside it
//! is flat, and its own device: that of a booting machine, or of a snapshot that is a template.
//!
//! ```text
//!  create ─▶ at rest ── attach ─▶ mapped ── detach ─▶ at rest ── remove ─▶ nothing
//!               │                    │
//!               ├─ clone_stopped ────┼─▶ another at rest ── flatten ─▶ flat
//!               └─ clone_frozen ─────┴─▶ the same files by other names
//! ```
//! **A file of changes that belongs to a snapshot is not written again**: a pause gives the machine's files their names in the
//! snapshot, and the next life begins a file of its own upon them. So either costs what was changed in one life, whatever
//! was changed before, and a resume that fails leaves the paused disk as it was. When there are many such files the
//! [latest are merged](merge), as a life begins.
//!
//! **Mapped devices outlive this process**, as the VMMs that have them open do. [`attach`](DiskStore::attach) takes over the
//! one that is there if it is made of the view's very files, and otherwise removes it first; [`sweep`](DiskStore::sweep)
//! removes those of this agent that were not taken over. Loop devices need no sweep: the kernel detaches one when its last
//! user closes it, and a mapped device is a user. So one that cannot be removed keeps its loop devices.
//!
//! **A view is as large as its base.** Disks grow before they become one: a golden machine boots from a flat copy of the
//! image that was made larger, and what it leaves is the base.
//!
//! **Nothing waits for the host's disk.** The kernel flushes the changes with each new pair of its index; the loop device is
//! told to let that end in the host's page cache, as flushes of guests do with every store.

mod changes;
mod mapper;
mod merge;
mod message;
mod name;
mod shared;
mod table;
mod view;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

pub use self::{changes::ChangesError, mapper::Unavailable};
use self::{
    mapper::Mapper,
    name::{DeviceName, DeviceNames},
    shared::Shared,
    table::SnapshotTable,
    view::{Layer, ViewFiles},
};
use super::{
    AttachedDisk, DiskError, DiskStore, DiskStoreKind, DiskView, attach_file, clone_or_copy,
    data::{Space, space},
    loopback::{Access, LoopDevice},
    number::{DeviceNumber, FileId},
};
use crate::{
    failpoint,
    failure::{Doing as _, Failure, Teardown, blocking, while_busy},
    paths::{HostPaths, partial},
};

/// With the kernel's device-mapper, on any file system.
#[derive(Clone)]
pub struct DmSnapshotStore(Arc<Store>);

struct Store {
    /// All file systems whose room limits what can be written.
    rooms: Vec<PathBuf>,
    mapper: Mapper,
    names: DeviceNames,
    /// Loop devices of bases.
    bases: Shared<FileId, LoopDevice>,
    /// What this process has mapped or taken over, by device.
    attached: Mutex<HashMap<PathBuf, Attachment>>,
}

struct Attachment {
    name: DeviceName,
    /// Held so that the next view of the same base uses it too.
    _base: Arc<LoopDevice>,
}

/// How a view is had once more.
type Repeat = fn(&ViewFiles, &Path) -> Result<(), DiskError>;

/// Whether this host can do it.
pub fn check() -> Result<(), Unavailable> {
    Mapper::open().map(drop)
}

impl DmSnapshotStore {
    pub fn open(paths: &HostPaths, rooms: Vec<PathBuf>) -> Result<Self, Unavailable> {
        Ok(Self(Arc::new(Store {
            rooms,
            mapper: Mapper::open()?,
            names: DeviceNames::of(paths),
            bases: Shared::default(),
            attached: Mutex::default(),
        })))
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let store = self.0.clone();
        blocking(move || work(&store)).await
    }
}

impl Store {
    fn attached(&self) -> MutexGuard<'_, HashMap<PathBuf, Attachment>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, from: &Path, at: &Path) -> Result<DiskView, DiskError> {
        // Of an earlier life that ended in the midst.
        self.remove(at)?;
        ViewFiles::make(from, at, space(&self.rooms, Space::Free)?)?;
        Ok(DiskView { path: at.to_owned() })
    }

    fn attach(&self, view: &DiskView) -> Result<AttachedDisk, DiskError> {
        let Some(files) = ViewFiles::of(&view.path)? else { return attach_file(view) };
        let name = self.names.view(files.own.id);
        let (base, number) = match self.take_over(&name, &files)? {
            Some(there) => there,
            None => self.map(&name, &files)?,
        };
        let device = device_path(number);
        self.attached().insert(device.clone(), Attachment { name, _base: base });
        Ok(AttachedDisk { view: view.clone(), device })
    }

    /// A device of this name that is what the view wants. One that is not is removed, and what is below it.
    fn take_over(
        &self,
        name: &DeviceName,
        files: &ViewFiles,
    ) -> Result<Option<(Arc<LoopDevice>, DeviceNumber)>, DiskError> {
        if let Some((base, number)) = self.find(name, files)? {
            let base = self.bases.get(files.base_id, || LoopDevice::open(base))?;
            return Ok(Some((base, number)));
        }
        // The lowest is the first that is made, and the last that is removed.
        for device in [name, &name.layer(1)] {
            if self.mapper.info(device)?.is_some() {
                tracing::info!(%device, "removing a stale device");
                self.unmap(name)?;
            }
        }
        Ok(None)
    }

    /// The base's loop device and the view's own device, if all that is between them shows this very view, by the files
    /// behind it.
    fn find(
        &self,
        name: &DeviceName,
        files: &ViewFiles,
    ) -> Result<Option<(DeviceNumber, DeviceNumber)>, Failure> {
        let is = |number: DeviceNumber, file: FileId| {
            LoopDevice::open(number).and_then(|device| device.backing()).is_ok_and(|backing| backing == file)
        };
        let mut found = None;
        for (device, layer) in devices(name, files) {
            let Some(info) = self.mapper.info(&device)?.filter(|info| !info.suspended) else {
                return Ok(None);
            };
            let Some(table) = self.table(&device)? else { return Ok(None) };
            let (base, fits) = match found {
                None => (table.base, is(table.base, files.base_id)),
                Some((base, below)) => (base, table.base == below),
            };
            if !fits || table.sectors != files.sectors || !is(table.changes, layer.id) {
                return Ok(None);
            }
            found = Some((base, info.number));
        }
        Ok(found)
    }

    fn table(&self, name: &DeviceName) -> Result<Option<SnapshotTable>, Failure> {
        let target = self.mapper.table(name)?;
        Ok(target.and_then(|target| SnapshotTable::parse(target.sectors, &target.kind, &target.text)))
    }

    /// On error nothing is left.
    fn map(
        &self,
        name: &DeviceName,
        files: &ViewFiles,
    ) -> Result<(Arc<LoopDevice>, DeviceNumber), DiskError> {
        let attach_base = || LoopDevice::attach(&files.base, Access::ReadOnly);
        let base = self.bases.get(files.base_id, attach_base)?;
        failpoint!(blocking "attach.base")?;
        match self.stack(name, files, base.number()) {
            Ok(number) => Ok((base, number)),
            Err(error) => {
                if let Err(left) = self.unmap(name) {
                    tracing::error!(error = &left as &dyn std::error::Error, "a mapped device is left");
                }
                Err(error)
            }
        }
    }

    /// Makes the devices of a view, each upon the last, from its base on.
    fn stack(
        &self,
        name: &DeviceName,
        files: &ViewFiles,
        base: DeviceNumber,
    ) -> Result<DeviceNumber, DiskError> {
        let mut below = base;
        for (device, layer) in devices(name, files) {
            let access = if device == *name { Access::ReadWrite } else { Access::ReadOnly };
            let changes = LoopDevice::attach(&layer.path, access)?;
            if access == Access::ReadWrite
                && let Err(failure) = changes.set_flushes(false)
            {
                tracing::warn!(error = &failure as &dyn std::error::Error, "this disk will be slow");
            }
            let table = SnapshotTable { sectors: files.sectors, base: below, changes: changes.number() };
            below = self.activate(&device, &table, access, &layer.path)?;
        }
        Ok(below)
    }

    fn activate(
        &self,
        name: &DeviceName,
        table: &SnapshotTable,
        access: Access,
        changes: &Path,
    ) -> Result<DeviceNumber, DiskError> {
        self.mapper.create(name)?;
        failpoint!(blocking "attach.made")?;
        self.mapper.load(name, table, access)?;
        failpoint!(blocking "attach.loaded")?;
        self.mapper.resume(name)?;
        failpoint!(blocking "attach.mapped")?;
        let sound = self.mapper.status(name)?.is_some_and(|target| table::is_sound(&target.text));
        if !sound {
            return Err(ChangesError::Invalid(changes.to_owned()).into());
        }
        let Some(info) = self.mapper.info(name)? else {
            return Err(DiskError::Vanished(name.to_string()));
        };
        let device = device_path(info.number);
        fs::metadata(&device).doing(|| format!("looking for {}", device.display()))?;
        Ok(info.number)
    }

    /// Removes a view's device, and those below it, as far as they are there.
    fn unmap(&self, name: &DeviceName) -> Result<(), Failure> {
        let changes = self.table(name)?.and_then(|table| LoopDevice::open(table.changes).ok());
        self.remove_device(name)?;
        if let Some(Err(failure)) = changes.map(|changes| changes.set_flushes(true)) {
            tracing::warn!(error = &failure as &dyn std::error::Error, "a loop device flushes no more");
        }
        // They are made from the lowest on, so there is none above one that is missing.
        let mut layers = Vec::new();
        while self.mapper.info(&name.layer(layers.len() + 1))?.is_some() {
            layers.push(name.layer(layers.len() + 1));
        }
        layers.iter().rev().try_for_each(|layer| self.remove_device(layer))
    }

    fn remove_device(&self, name: &DeviceName) -> Result<(), Failure> {
        match while_busy(|| self.mapper.remove(name)) {
            Err(failure) if failure.source.raw_os_error() != Some(libc::ENXIO) => Err(failure),
            _ => Ok(()),
        }
    }

    fn detach(&self, disk: AttachedDisk) -> Result<DiskView, DiskError> {
        let Some(attachment) = self.attached().remove(&disk.device) else { return Ok(disk.view) };
        if let Err(failure) = self.unmap(&attachment.name) {
            self.attached().insert(disk.device, attachment);
            return Err(failure.into());
        }
        failpoint!(blocking "detach.unmapped")?;
        Ok(disk.view)
    }

    /// Brings what a stopped machine has written to its disk into the file of changes.
    fn write_out(&self, view: &DiskView) -> Result<(), DiskError> {
        let Some(files) = ViewFiles::of(&view.path)? else { return Ok(()) };
        let Some(info) = self.mapper.info(&self.names.view(files.own.id))? else { return Ok(()) };
        let device = device_path(info.number);
        let synced = File::open(&device).and_then(|device| device.sync_all());
        Ok(synced.doing(|| format!("writing out {}", device.display()))?)
    }

    /// By `repeat`, if it is a view.
    fn clone(&self, view: &DiskView, to: &Path, repeat: Repeat) -> Result<DiskView, DiskError> {
        match ViewFiles::of(&view.path)? {
            Some(files) => {
                self.write_out(view)?;
                ViewFiles::remove(to)?;
                repeat(&files, to)?;
            }
            None => clone_or_copy(&view.path, to)?,
        }
        Ok(DiskView { path: to.to_owned() })
    }

    /// Also what is mapped of it, by whomever.
    fn remove(&self, disk: &Path) -> Result<(), DiskError> {
        let there = disk.exists();
        if let Some(files) = if there { ViewFiles::of(disk)? } else { None } {
            let name = self.names.view(files.own.id);
            self.unmap(&name)?;
            self.attached().retain(|_, attachment| attachment.name != name);
        }
        Ok(ViewFiles::remove(disk)?)
    }

    /// Removes devices that nobody here knows; goes on past errors.
    fn sweep(&self) -> Result<(), DiskError> {
        let mut unclaimed: HashSet<DeviceName> =
            self.mapper.list()?.iter().filter_map(|name| self.names.recognise(name)).collect();
        for attachment in self.attached().values() {
            unclaimed.remove(&attachment.name);
        }
        let mut teardown = Teardown::default();
        for name in unclaimed {
            tracing::info!(device = %name, "removing a device that no record claims");
            if let Err(failure) = self.unmap(&name) {
                teardown.failed(failure);
            }
        }
        Ok(teardown.finish()?)
    }
}

/// Made flat in its place. Between the two steps it is neither.
fn flatten(disk: &Path) -> Result<(), DiskError> {
    let Some(files) = ViewFiles::of(disk)? else { return Ok(()) };
    let whole = partial(disk);
    clone_or_copy(&files.base, &whole)?;
    for layer in files.layers() {
        changes::apply(&layer.path, &whole)?;
    }
    fs::rename(&whole, disk).doing(|| format!("renaming {} to {}", whole.display(), disk.display()))?;
    for part in files.earlier.iter().map(|layer| &layer.path).chain([&files.base]) {
        fs::remove_file(part).doing(|| format!("removing {}", part.display()))?;
    }
    Ok(())
}

/// The devices of a view with their files of changes, the lowest first and the view's own last.
fn devices<'a>(name: &'a DeviceName, files: &'a ViewFiles) -> impl Iterator<Item = (DeviceName, &'a Layer)> {
    let earlier = (1..).zip(&files.earlier).map(|(number, layer)| (name.layer(number), layer));
    earlier.chain([(name.clone(), &files.own)])
}

/// Where the kernel puts it, with or without udev.
fn device_path(number: DeviceNumber) -> PathBuf {
    Path::new("/dev").join(format!("dm-{}", number.minor))
}

#[async_trait]
impl DiskStore for DmSnapshotStore {
    fn kind(&self) -> DiskStoreKind {
        DiskStoreKind::DmSnapshot
    }

    async fn create(&self, base: &Path, at: &Path) -> Result<DiskView, DiskError> {
        let (base, at) = (base.to_owned(), at.to_owned());
        self.run(move |store| store.create(&base, &at)).await
    }

    async fn attach(&self, view: &DiskView) -> Result<AttachedDisk, DiskError> {
        let view = view.clone();
        self.run(move |store| store.attach(&view)).await
    }

    async fn detach(&self, disk: AttachedDisk) -> Result<DiskView, DiskError> {
        self.run(move |store| store.detach(disk)).await
    }

    async fn prepare_clone(&self, view: &DiskView) -> Result<(), DiskError> {
        let view = view.clone();
        self.run(move |store| store.write_out(&view)).await
    }

    async fn clone_stopped(&self, view: &DiskView, to: &Path) -> Result<DiskView, DiskError> {
        let (view, to) = (view.clone(), to.to_owned());
        self.run(move |store| store.clone(&view, &to, ViewFiles::copy)).await
    }

    async fn clone_frozen(&self, view: &DiskView, to: &Path) -> Result<DiskView, DiskError> {
        let (view, to) = (view.clone(), to.to_owned());
        self.run(move |store| store.clone(&view, &to, ViewFiles::link)).await
    }

    async fn flatten(&self, view: &DiskView) -> Result<(), DiskError> {
        let disk = view.path.clone();
        blocking(move || flatten(&disk)).await
    }

    async fn remove(&self, view: DiskView) -> Result<(), DiskError> {
        self.run(move |store| store.remove(&view.path)).await
    }

    async fn sweep(&self) -> Result<(), DiskError> {
        self.run(Store::sweep).await
    }

    async fn clone_file(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Ok(blocking(move || clone_or_copy(&from, &to)).await?)
    }

    async fn free_bytes(&self) -> Result<u64, DiskError> {
        space(&self.0.rooms, Space::Free)
    }

    async fn total_bytes(&self) -> Result<u64, DiskError> {
        space(&self.0.rooms, Space::Total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_disk_is_flattened_already() {
        let directory = tempfile::tempdir().unwrap();
        let [golden, view] = ["golden", "view"].map(|name| directory.path().join(name));
        fs::write(&golden, vec![7; 8192]).unwrap();
        ViewFiles::make(&golden, &view, 0).unwrap();
        for _ in 0..2 {
            flatten(&view).unwrap();
            assert_eq!(fs::read(&view).unwrap(), vec![7; 8192]);
            assert!(ViewFiles::of(&view).unwrap().is_none());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
