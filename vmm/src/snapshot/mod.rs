//! A machine that does not run: a directory with its device state, memory, disk and a manifest.
//!
//! ```text
//! <name>/manifest.json   one line `wrenn-snapshot 3 <sha256 of the rest>`, then JSON
//!        state           the VMM's device state
//!        memory          one byte of file per byte of guest memory, holes where it is zero; or instead
//!        memory.header   and data files, some of them hard links of earlier snapshots': see `memory`
//!        disk.ext4       of the same moment as the memory; with disk.ext4.base beside it, what was changed of that,
//!                        upon what disk.ext4.1, disk.ext4.2 … have of earlier changes
//!        working-set     which pages a restore needed, once one has shown it: a hint, see `uffd`
//! ```
//! Nothing else in it ever changes, so all of it may be linked or cloned into another snapshot.
//! A snapshot becomes visible only complete: see [`SnapshotWriter`].

mod manifest;
mod writer;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

pub(crate) use self::writer::SnapshotFiles;
pub use self::{
    manifest::{DiskEntry, FileDigest, MemoryLayout, SnapshotManifest},
    writer::{SnapshotWriter, sweep_partials},
};
use crate::{
    failure::{Doing as _, Failure, Failures, Teardown, blocking},
    memory::{Generations, MemoryError, header_path},
    paths::{base_of_disk, hex, layer_of_disk, sync_directory, unhex},
};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const DISK: &str = "disk.ext4";
const WORKING_SET: &str = "working-set";
/// Far more than any VMM's device state; what is larger did not come from one.
pub(crate) const STATE_LIMIT: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("there is no snapshot at {0}")]
    Missing(PathBuf),
    #[error("the snapshot at {directory} is damaged: {what}")]
    Corrupt { directory: PathBuf, what: String },
    #[error("the snapshot at {directory} has format {found}, this program reads {expected}")]
    Format { directory: PathBuf, found: String, expected: u32 },
    /// The machine was not saved into it before it was to be completed.
    #[error("nothing was saved into the snapshot at {0}")]
    Empty(PathBuf),
    #[error(transparent)]
    Io(#[from] Failure),
    #[error("removing a snapshot")]
    Teardown(#[from] Failures),
    #[error("the snapshot's memory")]
    Memory(#[from] MemoryError),
}

/// A complete snapshot whose parts have been checked.
#[derive(Clone, Debug)]
pub struct Snapshot {
    directory: PathBuf,
    id: String,
    manifest: SnapshotManifest,
}

impl Snapshot {
    /// Reads the manifest and checks that what it names is there, whole. The contents of memory and disk
    /// are not read.
    pub async fn open(directory: &Path) -> Result<Self, SnapshotError> {
        let directory = directory.to_owned();
        blocking(move || Self::open_here(directory)).await
    }

    fn open_here(directory: PathBuf) -> Result<Self, SnapshotError> {
        let path = directory.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SnapshotError::Missing(directory));
            }
            Err(error) => return Err(Failure::new(format!("reading {}", path.display()), error).into()),
        };
        let manifest = SnapshotManifest::decode(&bytes, &directory)?;
        let snapshot = Self { directory, id: Self::id_of(&bytes), manifest };
        snapshot.check_files()?;
        Ok(snapshot)
    }

    fn check_files(&self) -> Result<(), SnapshotError> {
        match &self.manifest.memory {
            MemoryLayout::Flat { bytes, .. } => self.check_size(&self.memory(), *bytes)?,
            MemoryLayout::Generations { bytes, header } => self.check_generations(*bytes, header)?,
        }
        match self.manifest.disk {
            None => {}
            Some(DiskEntry { bytes, changes_bytes: None, .. }) => self.check_size(&self.disk(), bytes)?,
            Some(DiskEntry { bytes, changes_bytes: Some(changes), layers }) => {
                self.check_size(&self.disk(), changes)?;
                for number in 1..=layers {
                    self.check_size(&layer_of_disk(&self.disk(), number), changes)?;
                }
                self.check_size(&base_of_disk(&self.disk()), bytes)?;
            }
        }
        self.check_size(&self.state(), self.manifest.state.bytes)?;
        if FileDigest::of(&self.state())? != self.manifest.state {
            return Err(self.corrupt("the device state does not match its digest"));
        }
        Ok(())
    }

    fn check_generations(&self, bytes: u64, header: &FileDigest) -> Result<(), SnapshotError> {
        let generations = Generations::open(&self.directory)?;
        if generations.bytes() != bytes || hex(&generations.checksum()) != header.sha256 {
            return Err(self.corrupt("the memory's header is another one than the manifest's"));
        }
        Ok(())
    }

    fn check_size(&self, path: &Path, expected: u64) -> Result<(), SnapshotError> {
        let found = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.corrupt(format!("{} is missing", path.display())));
            }
            Err(error) => return Err(Failure::new(format!("looking at {}", path.display()), error).into()),
        };
        if found == expected {
            return Ok(());
        }
        Err(self.corrupt(format!("{} has {found} bytes instead of {expected}", path.display())))
    }

    fn corrupt(&self, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Corrupt { directory: self.directory.clone(), what: what.into() }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// SHA-256 of its manifest, in lowercase hexadecimal: it is the same wherever the snapshot is, and no other one's.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn id_of(manifest: &[u8]) -> String {
        hex(&Sha256::digest(manifest))
    }

    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// The flat memory, there if that is the manifest's [`MemoryLayout`].
    pub fn memory(&self) -> PathBuf {
        self.directory.join(MEMORY)
    }

    /// A file that only this snapshot, or one with the same memory, has.
    pub(crate) fn memory_file(&self) -> PathBuf {
        match &self.manifest.memory {
            MemoryLayout::Flat { .. } => self.memory(),
            MemoryLayout::Generations { .. } => header_path(&self.directory),
        }
    }

    /// Opens the memory, however it is laid out. Blocks for as long as reading the header, or finding the holes
    /// of a flat file, takes.
    pub fn open_memory(&self) -> Result<Generations, MemoryError> {
        match &self.manifest.memory {
            MemoryLayout::Flat { digest, .. } => {
                Generations::of_flat(&self.memory(), digest.as_deref().and_then(unhex))
            }
            MemoryLayout::Generations { .. } => Generations::open(&self.directory),
        }
    }

    /// Reads all of the memory and compares it with the digests, as far as they are known.
    pub async fn verify(&self) -> Result<(), SnapshotError> {
        let snapshot = self.clone();
        blocking(move || Ok(snapshot.open_memory()?.verify()?)).await
    }

    pub fn state(&self) -> PathBuf {
        self.directory.join(STATE)
    }

    /// Which pages a restore needs, if that is known.
    pub fn working_set(&self) -> PathBuf {
        self.directory.join(WORKING_SET)
    }

    /// There if the manifest says so.
    pub fn disk(&self) -> PathBuf {
        self.directory.join(DISK)
    }

    pub async fn remove(self) -> Result<(), SnapshotError> {
        blocking(move || Ok(remove(&self.directory)?)).await
    }
}

/// Removes whatever snapshot there may be in a directory, so that also a power failure does not bring it back.
pub async fn withdraw(directory: &Path) -> Result<(), SnapshotError> {
    let directory = directory.to_owned();
    blocking(move || {
        remove(&directory)?;
        let parent = directory.parent().unwrap_or(Path::new("/"));
        Ok(sync_directory(parent).doing(|| format!("syncing {}", parent.display()))?)
    })
    .await
}

/// The manifest goes first: what is left after a crash is no snapshot any more.
fn remove(directory: &Path) -> Result<(), Failures> {
    let mut teardown = Teardown::default();
    let manifest = directory.join(MANIFEST);
    teardown.step(|| format!("removing {}", manifest.display()), fs::remove_file(&manifest));
    teardown.step(|| format!("removing {}", directory.display()), fs::remove_dir_all(directory));
    teardown.finish()
}

impl FileDigest {
    /// Of a small file.
    pub(crate) fn of(path: &Path) -> Result<Self, SnapshotError> {
        let doing = || format!("reading {}", path.display());
        let size = fs::metadata(path).doing(doing)?.len();
        if size > STATE_LIMIT {
            let error = io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes"));
            return Err(Failure::new(doing(), error).into());
        }
        let content = fs::read(path).doing(doing)?;
        Ok(Self { bytes: content.len() as u64, sha256: hex(&Sha256::digest(&content)) })
    }
}
