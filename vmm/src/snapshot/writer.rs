//! How a snapshot comes into being: written aside, made durable, renamed.
//!
//! ```text
//!  begin ──▶ <name>.partial ──(driver saves, disk is cloned into it)──▶ commit ──▶ <name>
//!                  └── abort, drop, or sweep after a crash ──▶ nothing
//! ```

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{
    DISK, DiskEntry, FileDigest, MANIFEST, MEMORY, MemoryLayout, STATE, Snapshot, SnapshotError, WORKING_SET,
};
use crate::{
    disk::{DiskFiles, clone_or_copy},
    driver::{MachineConfig, VmmIdentity},
    failpoint,
    failure::{Doing as _, Failure, Failures, Teardown, blocking},
    paths::{PARTIAL, create_directory, partial, sync_directory},
    snapshot::SnapshotManifest,
};

/// A snapshot that is being written.
#[derive(Debug)]
pub struct SnapshotWriter {
    target: PathBuf,
    partial: PathBuf,
    saved: Option<Saved>,
    parent: Option<String>,
    /// The memory's file holds all that the machine has not changed since it started.
    base_is_there: bool,
    /// Nothing is left to be removed when this is dropped.
    done: bool,
}

/// Where a driver writes a memory: in generations or flat.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFiles {
    pub directory: PathBuf,
    pub memory: PathBuf,
}

/// What a driver wrote.
#[derive(Debug)]
struct Saved {
    identity: VmmIdentity,
    machine: MachineConfig,
    memory: MemoryLayout,
    state: FileDigest,
}

impl SnapshotWriter {
    /// Starts beside `directory`, whose present content stays until [`commit`](Self::commit).
    pub async fn begin(directory: &Path) -> Result<Self, SnapshotError> {
        let target = directory.to_owned();
        let partial = partial(directory);
        let made = partial.clone();
        blocking(move || {
            match fs::remove_dir_all(&made) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
            .doing(|| format!("removing the leftover {}", made.display()))?;
            create_directory(&made, 0o700)
        })
        .await?;
        Ok(Self { target, partial, saved: None, parent: None, base_is_there: false, done: false })
    }

    /// Where the parts are written until it is complete.
    pub fn directory(&self) -> &Path {
        &self.partial
    }

    pub fn memory_path(&self) -> PathBuf {
        self.partial.join(MEMORY)
    }

    pub(crate) fn files(&self) -> SnapshotFiles {
        SnapshotFiles { directory: self.partial.clone(), memory: self.memory_path() }
    }

    pub fn state_path(&self) -> PathBuf {
        self.partial.join(STATE)
    }

    /// Where a hint may be put: see [`Snapshot::working_set`].
    pub(crate) fn working_set_path(&self) -> PathBuf {
        self.partial.join(WORKING_SET)
    }

    /// Where the disk of the same moment is to be cloned to, if the snapshot is to have one.
    pub fn disk_path(&self) -> PathBuf {
        self.partial.join(DISK)
    }

    /// For drivers: [`Snapshot::id`] of what the machine was restored from, if it was.
    pub(crate) fn set_parent(&mut self, parent: Option<String>) {
        self.parent = parent;
    }

    /// For drivers: memory and device state are written.
    pub fn saved(
        &mut self,
        identity: VmmIdentity,
        machine: MachineConfig,
        memory: MemoryLayout,
    ) -> Result<u64, SnapshotError> {
        let state = FileDigest::of(&self.state_path())?;
        let bytes = state.bytes;
        self.saved = Some(Saved { identity, machine, memory, state });
        Ok(bytes)
    }

    /// For drivers: see [`Machine::prepare_save`](crate::driver::Machine::prepare_save).
    pub(crate) fn set_base_is_there(&mut self) {
        self.base_is_there = true;
    }

    pub(crate) fn base_is_there(&self) -> bool {
        self.base_is_there
    }

    /// Takes memory and device state from another snapshot, as cheaply as the file system lets it be. The disk
    /// is the caller's to clone.
    pub async fn copy_machine(&mut self, of: &Snapshot) -> Result<(), SnapshotError> {
        let (from, to) = (of.directory().to_owned(), self.partial.clone());
        blocking(move || copy_files(&from, &to)).await?;
        let SnapshotManifest { identity, machine, memory, state, parent, .. } = of.manifest().clone();
        self.parent = parent;
        self.saved = Some(Saved { identity, machine, memory, state });
        Ok(())
    }

    /// Makes it durable, then visible, in place of an older one of the same name. On error there is
    /// what was there before.
    pub async fn commit(mut self) -> Result<Snapshot, SnapshotError> {
        let Some(saved) = self.saved.take() else {
            return Err(SnapshotError::Empty(self.target.clone()));
        };
        blocking(move || {
            let (manifest, id) = self.write_manifest(saved)?;
            failpoint!(blocking "commit.described")?;
            self.sync()?;
            failpoint!(blocking "commit.synced")?;
            self.publish()?;
            failpoint!(blocking "commit.visible")?;
            Ok(Snapshot { directory: self.target.clone(), id, manifest })
        })
        .await
    }

    /// Makes it visible as [`commit`](Self::commit) does, but for this run of the host only: after a power failure
    /// it may be there and not whole.
    pub async fn commit_unsynced(mut self) -> Result<Snapshot, SnapshotError> {
        let Some(saved) = self.saved.take() else {
            return Err(SnapshotError::Empty(self.target.clone()));
        };
        blocking(move || {
            let (manifest, id) = self.write_manifest(saved)?;
            // What it replaces is removed when this writer is dropped.
            self.done = !self.rename()?;
            Ok(Snapshot { directory: self.target.clone(), id, manifest })
        })
        .await
    }

    /// Answers the snapshot's id, too.
    fn write_manifest(&self, saved: Saved) -> Result<(SnapshotManifest, String), SnapshotError> {
        let disk = DiskFiles::of(&self.disk_path())?.map(DiskEntry::from);
        let created_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Saved { identity, machine, memory, state } = saved;
        let manifest = SnapshotManifest {
            created_at_ns: i64::try_from(created_at.as_nanos()).unwrap_or(i64::MAX),
            identity,
            machine,
            memory,
            state,
            disk,
            parent: self.parent.clone(),
        };
        let path = self.partial.join(MANIFEST);
        let encoded = manifest.encode();
        fs::write(&path, &encoded).doing(|| format!("writing {}", path.display()))?;
        Ok((manifest, Snapshot::id_of(&encoded)))
    }

    /// File by file, not the whole file system, which would wait for what every other machine on it has
    /// written too; and all at once, so that they share the journal's commit and the disk's flush.
    fn sync(&self) -> Result<(), Failure> {
        let doing = || format!("listing {}", self.partial.display());
        let entries = fs::read_dir(&self.partial).doing(doing)?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
        let paths = paths.doing(doing)?;
        thread::scope(|scope| {
            let syncs: Vec<_> =
                paths.iter().chain([&self.partial]).map(|path| scope.spawn(move || sync(path))).collect();
            syncs
                .into_iter()
                .try_for_each(|sync| sync.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn publish(&mut self) -> Result<(), SnapshotError> {
        let replaces = self.rename()?;
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        let durable = failpoint!(blocking "commit.renamed")
            .and_then(|()| sync_directory(parent).doing(|| format!("syncing {}", parent.display())));
        if let Err(failure) = durable {
            // The machine goes on, so what it was saved as before is what counts.
            take_place(&self.target, &self.partial, replaces)?;
            return Err(failure.into());
        }
        self.done = true;
        if replaces {
            // The new one counts from here on; the next sweep takes what is left of the old one.
            if let Err(error) = fs::remove_dir_all(&self.partial) {
                tracing::warn!(path = %self.partial.display(), %error, "removing a replaced snapshot");
            }
        }
        Ok(())
    }

    /// Answers whether there was one of that name, which then is where this one was written.
    fn rename(&self) -> Result<bool, Failure> {
        let replaces = self.target.exists();
        take_place(&self.partial, &self.target, replaces)?;
        Ok(replaces)
    }

    /// Removes what was written.
    pub async fn abort(mut self) -> Result<(), SnapshotError> {
        self.done = true;
        let partial = self.partial.clone();
        let result = blocking(move || fs::remove_dir_all(partial)).await;
        Ok(result.doing(|| format!("removing {}", self.partial.display()))?)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = fs::remove_dir_all(&self.partial)
        {
            tracing::warn!(path = %self.partial.display(), %error, "removing an unfinished snapshot");
        }
    }
}

/// Renames, with what is there taking the other name.
fn take_place(from: &Path, to: &Path, something_is_there: bool) -> Result<(), Failure> {
    let flags = if something_is_there { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
    renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)
        .doing(|| format!("renaming {} to {}", from.display(), to.display()))
}

/// Everything of a snapshot but its manifest and its disk.
fn copy_files(from: &Path, to: &Path) -> Result<(), Failure> {
    let doing = || format!("copying {}", from.display());
    for entry in fs::read_dir(from).doing(doing)? {
        let entry = entry.doing(doing)?;
        let name = entry.file_name();
        // The disk's further files have its name before theirs.
        if name != MANIFEST && !name.as_encoded_bytes().starts_with(DISK.as_bytes()) {
            let copy = to.join(&name);
            clone_or_copy(&entry.path(), &copy)?;
            let mode = entry.metadata().doing(doing)?.permissions();
            fs::set_permissions(&copy, mode).doing(|| format!("setting the mode of {}", copy.display()))?;
        }
    }
    Ok(())
}

fn sync(path: &Path) -> Result<(), Failure> {
    fs::File::open(path)
        .and_then(|file| Ok(nix::unistd::fdatasync(file.as_fd())?))
        .doing(|| format!("syncing {}", path.display()))
}

/// Removes what a crash left unfinished in a directory of snapshots and in the directories below it;
/// answers how many. Goes on past errors.
pub async fn sweep_partials(directory: &Path) -> Result<usize, Failures> {
    let directory = directory.to_owned();
    blocking(move || {
        let mut teardown = Teardown::default();
        let swept = sweep(&directory, 1, &mut teardown);
        teardown.finish().map(|()| swept)
    })
    .await
}

fn sweep(directory: &Path, levels_below: u32, teardown: &mut Teardown) -> usize {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            teardown.step(|| format!("listing {}", directory.display()), Err::<(), _>(error));
            return 0;
        }
    };
    let mut swept = 0;
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        let path = entry.path();
        if path.as_os_str().as_encoded_bytes().ends_with(PARTIAL.as_bytes()) {
            teardown.step(|| format!("removing {}", path.display()), fs::remove_dir_all(&path));
            swept += 1;
        } else if levels_below > 0 {
            swept += sweep(&path, levels_below - 1, teardown);
        }
    }
    swept
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn written(at: &Path, memory: &[u8]) -> SnapshotWriter {
        let mut writer = SnapshotWriter::begin(at).await.unwrap();
        fs::write(writer.memory_path(), memory).unwrap();
        fs::write(writer.state_path(), "abc").unwrap();
        fs::write(writer.disk_path(), "disk").unwrap();
        let like = crate::snapshot::manifest::tests::manifest();
        let layout = MemoryLayout::Flat { bytes: memory.len() as u64, digest: None };
        writer.saved(like.identity, like.machine, layout).unwrap();
        writer
    }

    #[tokio::test]
    async fn nothing_is_visible_before_commit_and_everything_after() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("cl-1");
        let mut writer = written(&at, b"memory").await;
        writer.set_parent(Some("5ca1ab1e".into()));
        assert!(matches!(Snapshot::open(&at).await, Err(SnapshotError::Missing(_))));

        let written = writer.commit().await.unwrap();
        let snapshot = Snapshot::open(&at).await.unwrap();
        assert_eq!(snapshot.id(), written.id());
        assert_eq!(snapshot.manifest().disk, Some(DiskEntry { bytes: 4, changes_bytes: None, layers: 0 }));
        assert_eq!(snapshot.manifest().parent.as_deref(), Some("5ca1ab1e"));
        assert_eq!(fs::read(snapshot.memory()).unwrap(), b"memory");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        snapshot.remove().await.unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn one_is_withdrawn_whatever_there_is_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("cl-1");
        let snapshot = written(&at, b"memory").await.commit().await.unwrap();
        fs::write(snapshot.state(), "of another one").unwrap();
        for _ in 0..2 {
            crate::snapshot::withdraw(&at).await.unwrap();
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn a_copy_is_as_whole_as_what_it_was_made_from() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("cl-1"), directory.path().join("tpl-1"));
        let mut writer = written(&from, b"memory").await;
        writer.set_parent(Some("5ca1ab1e".into()));
        let paused = writer.commit().await.unwrap();
        for _ in 0..2 {
            let mut writer = SnapshotWriter::begin(&to).await.unwrap();
            writer.copy_machine(&paused).await.unwrap();
            fs::copy(paused.disk(), writer.disk_path()).unwrap();
            writer.commit_unsynced().await.unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        let copy = Snapshot::open(&to).await.unwrap();
        assert_eq!(copy.manifest().parent, paused.manifest().parent);
        assert_ne!(copy.id(), paused.id());
        paused.remove().await.unwrap();
        assert_eq!(fs::read(copy.memory()).unwrap(), b"memory");
        assert_eq!(copy.manifest().disk, Some(DiskEntry { bytes: 4, changes_bytes: None, layers: 0 }));
    }

    #[tokio::test]
    async fn all_files_of_a_disk_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let (at, other) = (directory.path().join("cl-1"), directory.path().join("tpl-1"));
        let writer = written(&at, b"memory").await;
        for further in ["base", "1", "2"] {
            fs::write(writer.directory().join(format!("{DISK}.{further}")), "disk").unwrap();
        }
        let snapshot = writer.commit().await.unwrap();
        let disk = DiskEntry { bytes: 4, changes_bytes: Some(4), layers: 2 };
        assert_eq!(Snapshot::open(&at).await.unwrap().manifest().disk, Some(disk));
        let mut copy = SnapshotWriter::begin(&other).await.unwrap();
        copy.copy_machine(&snapshot).await.unwrap();
        assert_eq!(fs::read_dir(copy.directory()).unwrap().count(), 2, "a disk is not the machine's");

        fs::remove_file(at.join("disk.ext4.2")).unwrap();
        let error = Snapshot::open(&at).await.unwrap_err();
        assert!(error.to_string().contains("disk.ext4.2 is missing"), "{error}");
    }

    #[tokio::test]
    async fn a_newer_one_takes_the_place_of_the_older() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("cl-1");
        written(&at, b"one").await.commit().await.unwrap();
        let second = written(&at, b"second").await;
        assert_eq!(fs::read(Snapshot::open(&at).await.unwrap().memory()).unwrap(), b"one");
        second.commit().await.unwrap();
        assert_eq!(fs::read(Snapshot::open(&at).await.unwrap().memory()).unwrap(), b"second");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn an_unfinished_one_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("cl-1");
        written(&at, b"aborted").await.abort().await.unwrap();
        drop(written(&at, b"dropped").await);
        let empty = SnapshotWriter::begin(&at).await.unwrap();
        assert!(matches!(empty.commit().await, Err(SnapshotError::Empty(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_crash_leaves_a_partial_one_that_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        written(&directory.path().join("whole"), b"memory").await.commit().await.unwrap();
        for crashed in ["cl-1", "minimal/1-256-1024"] {
            std::mem::forget(written(&directory.path().join(crashed), b"memory").await);
        }
        assert_eq!(sweep_partials(directory.path()).await.unwrap(), 2);
        assert_eq!(sweep_partials(directory.path()).await.unwrap(), 0);
        Snapshot::open(&directory.path().join("whole")).await.unwrap();
    }

    #[tokio::test]
    async fn a_damaged_one_is_refused_saying_how() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("cl-1");
        type Damage<'a> = &'a dyn Fn(&Snapshot);
        let damage: [(&str, Damage); 4] = [
            ("memory has 5 bytes instead of 6", &|s| fs::write(s.memory(), "short").unwrap()),
            ("disk.ext4 is missing", &|s| fs::remove_file(s.disk()).unwrap()),
            ("the device state does not match", &|s| fs::write(s.state(), "xyz").unwrap()),
            ("the manifest is cut off", &|s| fs::write(s.directory().join(MANIFEST), "").unwrap()),
        ];
        for (expected, damage) in damage {
            let snapshot = written(&at, b"memory").await.commit().await.unwrap();
            damage(&snapshot);
            let error = Snapshot::open(&at).await.unwrap_err();
            assert!(matches!(error, SnapshotError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error} should say {expected}");
        }
    }
}
