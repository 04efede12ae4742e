//! Views by device-mapper, on file systems that cannot share blocks.
//!
//! ```text
//!  /dev/dm-N          what the VMM opens: reads of what was not changed go to the base
//!   │ snapshot target, persistent
//!   ├─ /dev/loopA     read-only, one for each base, shared by all views of it
//!   │   └─ disk.ext4.base    a hard link of the snapshot's disk that the view was made of
//!   └─ /dev/loopB     this view's own
//!       └─ disk.ext4         what was changed, sparse: see `changes`
//! ```
//! A view is its two files, and nothing but them: no list says which base belongs to which view, a snapshot or a base may
//! be removed while there are views of it, and what nobody has a link of any more is gone. A disk without a base beside it
//! is flat, and its own device: that of a booting machine, or of a snapshot that is a template.
//!
//! ```text
//!  create ─▶ at rest ── attach ─▶ mapped ── detach ─▶ at rest ── remove ─▶ nothing
//!               │                    │
//!               └─ clone_stopped ────┴─▶ another at rest ── flatten ─▶ flat
//! ```
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
mod message;
mod name;
mod shared;
mod table;
mod view;

use std::{
    collections::HashMap,
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
    view::ViewFiles,
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
    paths::{HostPaths, base_of_disk, partial},
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
        ViewFiles::make(from, at)?;
        Ok(DiskView { path: at.to_owned() })
    }

    fn attach(&self, view: &DiskView) -> Result<AttachedDisk, DiskError> {
        let Some(files) = ViewFiles::of(&view.path)? else { return attach_file(view) };
        let name = self.names.view(files.changes_id);
        let (base, number) = match self.take_over(&name, &files)? {
            Some(there) => there,
            None => self.map(&name, &files)?,
        };
        let device = device_path(number);
        self.attached().insert(device.clone(), Attachment { name, _base: base });
        Ok(AttachedDisk { view: view.clone(), device })
    }

    /// A device of this name that is what the view wants. One that is not is removed.
    fn take_over(
        &self,
        name: &DeviceName,
        files: &ViewFiles,
    ) -> Result<Option<(Arc<LoopDevice>, DeviceNumber)>, DiskError> {
        let Some(info) = self.mapper.info(name)? else { return Ok(None) };
        let table = self.table(name)?.filter(|_| !info.suspended);
        if let Some(table) = table.filter(|table| is_made_of(table, files)) {
            let base = self.bases.get(files.base_id, || LoopDevice::open(table.base))?;
            return Ok(Some((base, info.number)));
        }
        tracing::info!(device = %name, "removing a stale device");
        self.unmap(name)?;
        Ok(None)
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
        let changes = LoopDevice::attach(&files.changes, Access::ReadWrite)?;
        if let Err(failure) = changes.set_flushes(false) {
            tracing::warn!(error = &failure as &dyn std::error::Error, "this disk will be slow");
        }
        let table = SnapshotTable { sectors: files.sectors, base: base.number(), changes: changes.number() };
        match self.activate(name, &table, files) {
            Ok(number) => Ok((base, number)),
            Err(error) => {
                if let Err(left) = self.unmap(name) {
                    tracing::error!(error = &left as &dyn std::error::Error, "a mapped device is left");
                }
                Err(error)
            }
        }
    }

    fn activate(
        &self,
        name: &DeviceName,
        table: &SnapshotTable,
        files: &ViewFiles,
    ) -> Result<DeviceNumber, DiskError> {
        self.mapper.create(name)?;
        failpoint!(blocking "attach.made")?;
        self.mapper.load(name, table)?;
        failpoint!(blocking "attach.loaded")?;
        self.mapper.resume(name)?;
        failpoint!(blocking "attach.mapped")?;
        let sound = self.mapper.status(name)?.is_some_and(|target| table::is_sound(&target.text));
        if !sound {
            return Err(ChangesError::Invalid(files.changes.clone()).into());
        }
        let Some(info) = self.mapper.info(name)? else {
            return Err(DiskError::Vanished(name.to_string()));
        };
        let device = device_path(info.number);
        fs::metadata(&device).doing(|| format!("looking for {}", device.display()))?;
        Ok(info.number)
    }

    /// Removes a device if it is there.
    fn unmap(&self, name: &DeviceName) -> Result<(), Failure> {
        let changes = self.table(name)?.and_then(|table| LoopDevice::open(table.changes).ok());
        match while_busy(|| self.mapper.remove(name)) {
            Err(failure) if failure.source.raw_os_error() != Some(libc::ENXIO) => return Err(failure),
            _ => {}
        }
        if let Some(Err(failure)) = changes.map(|changes| changes.set_flushes(true)) {
            tracing::warn!(error = &failure as &dyn std::error::Error, "a loop device flushes no more");
        }
        Ok(())
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
        let Some(info) = self.mapper.info(&self.names.view(files.changes_id))? else { return Ok(()) };
        let device = device_path(info.number);
        let synced = File::open(&device).and_then(|device| device.sync_all());
        Ok(synced.doing(|| format!("writing out {}", device.display()))?)
    }

    fn clone_stopped(&self, view: &DiskView, to: &Path) -> Result<DiskView, DiskError> {
        if ViewFiles::of(&view.path)?.is_none() {
            clone_or_copy(&view.path, to)?;
            return Ok(DiskView { path: to.to_owned() });
        }
        self.write_out(view)?;
        self.create(&view.path, to)
    }

    /// Also what is mapped of it, by whomever.
    fn remove(&self, disk: &Path) -> Result<(), DiskError> {
        let there = disk.exists();
        if let Some(files) = if there { ViewFiles::of(disk)? } else { None } {
            let name = self.names.view(files.changes_id);
            self.unmap(&name)?;
            self.attached().retain(|_, attachment| attachment.name != name);
        }
        Ok(ViewFiles::remove(disk)?)
    }

    /// Removes devices that nobody here knows; goes on past errors.
    fn sweep(&self) -> Result<(), DiskError> {
        let claimed: Vec<DeviceName> =
            self.attached().values().map(|attachment| attachment.name.clone()).collect();
        let mut teardown = Teardown::default();
        let names = self.mapper.list()?;
        for name in names.iter().filter_map(|name| self.names.recognise(name)) {
            if !claimed.contains(&name) {
                tracing::info!(device = %name, "removing a device that no record claims");
                if let Err(failure) = self.unmap(&name) {
                    teardown.failed(failure);
                }
            }
        }
        Ok(teardown.finish()?)
    }
}

/// Made flat in its place. Between the two steps it is neither.
fn flatten(disk: &Path) -> Result<(), DiskError> {
    let base = base_of_disk(disk);
    if !base.exists() {
        return Ok(());
    }
    let whole = partial(disk);
    changes::flatten(&base, disk, &whole)?;
    fs::rename(&whole, disk).doing(|| format!("renaming {} to {}", whole.display(), disk.display()))?;
    Ok(fs::remove_file(&base).doing(|| format!("removing {}", base.display()))?)
}

/// Whether a device shows this very view, by the files behind it.
fn is_made_of(table: &SnapshotTable, files: &ViewFiles) -> bool {
    let is = |number: DeviceNumber, file: FileId| {
        LoopDevice::open(number).and_then(|device| device.backing()).is_ok_and(|backing| backing == file)
    };
    table.sectors == files.sectors && is(table.base, files.base_id) && is(table.changes, files.changes_id)
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
        self.run(move |store| store.clone_stopped(&view, &to)).await
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
        ViewFiles::make(&golden, &view).unwrap();
        for _ in 0..2 {
            flatten(&view).unwrap();
            assert_eq!(fs::read(&view).unwrap(), vec![7; 8192]);
            assert!(ViewFiles::of(&view).unwrap().is_none());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
