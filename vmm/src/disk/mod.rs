//! Disks: copy-on-write views of immutable images, behind one trait for all ways to make them.

mod copy;
mod data;
mod dm_snapshot;
mod extents;
mod image;
mod loopback;
mod number;
mod reflink;
mod sparse;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    data::clones_here,
    dm_snapshot::check as check_dm_snapshot,
    extents::data_ranges,
    reflink::{is_unsupported, write_out},
};
pub use self::{
    data::{DiskOptions, prepare, trim, unmount},
    dm_snapshot::{ChangesError, DmSnapshotStore, Unavailable},
    image::{compact, publish},
};
use crate::{
    failpoint,
    failure::{Doing as _, Failure, Failures, blocking},
    paths::{base_of_disk, layers_of_disk, partial},
};

/// How views are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskStoreKind {
    /// The file system shares blocks until they are written.
    Reflink,
    /// The kernel's device-mapper keeps what was changed beside an image that views share.
    DmSnapshot,
    /// Every view is a copy with the holes kept.
    Copy,
}

impl fmt::Display for DiskStoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reflink => "reflink",
            Self::DmSnapshot => "dm-snapshot",
            Self::Copy => "copy",
        })
    }
}

/// Which store to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskStoreChoice {
    /// The best the host offers.
    #[default]
    Auto,
    Only(DiskStoreKind),
}

/// The text names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a disk store: auto, reflink, dm-snapshot or copy")]
pub struct InvalidChoice(String);

impl FromStr for DiskStoreChoice {
    type Err = InvalidChoice;

    fn from_str(text: &str) -> Result<Self, InvalidChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "reflink" => Ok(Self::Only(DiskStoreKind::Reflink)),
            "dm-snapshot" => Ok(Self::Only(DiskStoreKind::DmSnapshot)),
            "copy" => Ok(Self::Only(DiskStoreKind::Copy)),
            _ => Err(InvalidChoice(text.to_owned())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    Io(#[from] Failure),
    #[error(
        "{0} cannot share blocks between files, and holds data already that a new file system would hide"
    )]
    DataInTheWay(PathBuf),
    #[error("{program} failed: {output}")]
    Tool { program: &'static str, output: String },
    /// What a guest has left there.
    #[error("it has no ext4 file system that can be put in order: {program} says: {output}")]
    FileSystem { program: &'static str, output: String },
    #[error("{path} has {bytes} bytes already, more than the {wanted} wanted")]
    WouldShrink { path: PathBuf, bytes: u64, wanted: u64 },
    #[error("{0} is as large as its base for good")]
    FixedSize(PathBuf),
    #[error("{0} was made by the disk store dm-snapshot: start with WRENN_DISK_STORE=dm-snapshot")]
    OtherStore(PathBuf),
    #[error("this host cannot map devices")]
    Unavailable(#[from] Unavailable),
    #[error("a disk's changes")]
    Changes(#[from] ChangesError),
    #[error("the device {0} went away while it was being made")]
    Vanished(String),
    #[error("removing mapped devices")]
    Teardown(#[from] Failures),
}

/// A disk that belongs to one capsule or snapshot, at rest. Can be written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    pub path: PathBuf,
}

/// A disk that a VMM can open.
#[derive(Debug)]
pub struct AttachedDisk {
    view: DiskView,
    device: PathBuf,
}

impl AttachedDisk {
    pub fn view(&self) -> &DiskView {
        &self.view
    }

    /// The file or block device to open.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

/// Makes, attaches and removes views.
#[async_trait]
pub trait DiskStore: Send + Sync {
    fn kind(&self) -> DiskStoreKind;

    /// A view at `at` of what `base`, which never changes again, holds.
    async fn create(&self, base: &Path, at: &Path) -> Result<DiskView, DiskError>;

    async fn attach(&self, view: &DiskView) -> Result<AttachedDisk, DiskError>;

    /// After its VMM has ended.
    async fn detach(&self, disk: AttachedDisk) -> Result<DiskView, DiskError>;

    /// Does what can be done ahead of a [`clone_stopped`](Self::clone_stopped) while the machine still runs, so
    /// that it stands still for less long.
    async fn prepare_clone(&self, view: &DiskView) -> Result<(), DiskError>;

    /// The same content once more, of a disk whose machine does not run.
    async fn clone_stopped(&self, view: &DiskView, to: &Path) -> Result<DiskView, DiskError>;

    /// The same content once more, of a disk that is not written to any more for as long as there is the other, nor is that:
    /// both may lie in the same files.
    async fn clone_frozen(&self, view: &DiskView, to: &Path) -> Result<DiskView, DiskError> {
        self.clone_stopped(view, to).await
    }

    /// Makes the disk of a snapshot that is not complete yet one that many views can be made of, each in constant time;
    /// the machine it is of may run meanwhile. An error may leave it useless.
    async fn flatten(&self, _view: &DiskView) -> Result<(), DiskError> {
        Ok(())
    }

    /// One that is not there is removed already.
    async fn remove(&self, view: DiskView) -> Result<(), DiskError>;

    /// Takes away what an earlier life of this host's agent left attached and nobody has attached again since.
    async fn sweep(&self) -> Result<(), DiskError> {
        Ok(())
    }

    /// A copy, as cheap as can be, of any file that does not change meanwhile.
    async fn clone_file(&self, from: &Path, to: &Path) -> Result<(), DiskError>;

    /// What can still be written before the host's disk is full.
    async fn free_bytes(&self) -> Result<u64, DiskError>;

    async fn total_bytes(&self) -> Result<u64, DiskError>;
}

/// Brings a template's image, from whatever file system, to where it can be cloned from; complete or
/// not at all.
pub async fn install_image(image: &Path, to: &Path) -> Result<(), DiskError> {
    let (image, to) = (image.to_owned(), to.to_owned());
    blocking(move || {
        let partial = partial(&to);
        sparse::copy(&image, &partial)?;
        failpoint!(blocking "image.copied")?;
        Ok(fs::rename(&partial, &to)
            .doing(|| format!("renaming {} to {}", partial.display(), to.display()))?)
    })
    .await
}

/// Makes a disk that does not run larger. The file system on it is grown by the guest when it boots.
pub async fn extend(disk: &Path, size_mib: u32) -> Result<(), DiskError> {
    let path = disk.to_owned();
    let wanted = u64::from(size_mib) << 20;
    blocking(move || {
        if base_of_disk(&path).exists() {
            return Err(DiskError::FixedSize(path));
        }
        let doing = || format!("making {} larger", path.display());
        let file = fs::OpenOptions::new().write(true).open(&path).doing(doing)?;
        let bytes = file.metadata().doing(doing)?.len();
        if bytes > wanted {
            return Err(DiskError::WouldShrink { path, bytes, wanted });
        }
        Ok(file.set_len(wanted).doing(doing)?)
    })
    .await
}

/// A copy as cheap as the file system lets it be.
pub(crate) fn clone_or_copy(from: &Path, to: &Path) -> Result<(), Failure> {
    if try_clone(from, to)? { Ok(()) } else { sparse::copy(from, to) }
}

/// Whether the file system shares blocks between files, and `to` is a clone of `from` now.
pub(crate) fn try_clone(from: &Path, to: &Path) -> Result<bool, Failure> {
    match reflink::clone(from, to) {
        Ok(()) => Ok(true),
        Err(failure) if is_unsupported(&failure.source) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// The files that a disk lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskFiles {
    /// Size of the disk, as its guest sees it.
    pub bytes: u64,
    /// Size of its file, if that has what was changed of a base beside it.
    pub changes_bytes: Option<u64>,
    /// Further files between the two, each of the same size.
    pub layers: usize,
}

impl DiskFiles {
    /// None if there is no disk.
    pub fn of(disk: &Path) -> Result<Option<Self>, Failure> {
        let size = |path: &Path| match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::new(format!("looking at {}", path.display()), error)),
        };
        let (file, base) = (size(disk)?, size(&base_of_disk(disk))?);
        Ok(match (file, base) {
            (Some(changes), Some(bytes)) => {
                let layers =
                    layers_of_disk(disk).doing(|| format!("looking for layers of {}", disk.display()))?;
                Some(Self { bytes, changes_bytes: Some(changes), layers: layers.len() })
            }
            (Some(bytes), None) => Some(Self { bytes, changes_bytes: None, layers: 0 }),
            (None, _) => None,
        })
    }
}

/// For the plain stores: what another one made would be taken for something else.
fn check_is_plain(disk: &Path) -> Result<(), DiskError> {
    if base_of_disk(disk).exists() { Err(DiskError::OtherStore(disk.to_owned())) } else { Ok(()) }
}

/// Both plain stores keep a view in a file and need nothing to attach it.
fn attach_file(view: &DiskView) -> Result<AttachedDisk, DiskError> {
    check_is_plain(&view.path)?;
    fs::metadata(&view.path).doing(|| format!("attaching {}", view.path.display()))?;
    Ok(AttachedDisk { view: view.clone(), device: view.path.clone() })
}

fn remove_file(view: &DiskView) -> Result<(), DiskError> {
    match fs::remove_file(&view.path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("removing {}", view.path.display()), error).into())
        }
        _ => Ok(()),
    }
}
