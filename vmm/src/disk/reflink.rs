//! Views by `FICLONE`: constant time, blocks shared until one side writes.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use nix::errno::Errno;

use super::{
    AttachedDisk, DiskError, DiskStore, DiskStoreKind, DiskView, attach_file, check_is_plain,
    data::{Space, space},
    remove_file,
    sparse::create,
};
use crate::failure::{Doing as _, Failure, blocking};

/// On XFS or btrfs.
pub struct ReflinkStore {
    /// All file systems whose room limits what can be written.
    pub rooms: Vec<PathBuf>,
}

/// Makes `to` a clone of `from`, in the same file system. What is not yet written of `from` is written first.
pub fn clone(from: &Path, to: &Path) -> Result<(), Failure> {
    let source = File::open(from).doing(|| format!("opening {}", from.display()))?;
    let target = create(to)?;
    share_blocks(&source, &target).map_err(|error| {
        // Nothing of a failed clone is to be mistaken for one.
        let _ = fs::remove_file(to);
        Failure::new(format!("cloning {} to {}", from.display(), to.display()), error)
    })
}

pub(super) fn share_blocks(source: &File, target: &File) -> io::Result<()> {
    // SAFETY: the request takes a descriptor by value; both are open.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    Errno::result(result)?;
    Ok(())
}

/// Writes what is dirty of a file in the host's cache, as a clone would have to do first. Waits for the file system,
/// not for the disk below it: nothing is made durable.
pub(crate) fn write_out(path: &Path) -> Result<(), Failure> {
    let doing = || format!("writing out {}", path.display());
    let file = File::open(path).doing(doing)?;
    let waiting = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(&file, waiting | libc::SYNC_FILE_RANGE_WRITE).doing(doing)
}

/// As [`write_out`], but waits for nothing.
pub(super) fn begin_to_write_out(file: &File) -> io::Result<()> {
    sync_range(file, libc::SYNC_FILE_RANGE_WRITE)
}

fn sync_range(file: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes an open descriptor and numbers; a length of zero means to the end.
    Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) })?;
    Ok(())
}

/// The file system, or this pair of files, cannot share blocks.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    const CODES: [i32; 5] = [libc::EOPNOTSUPP, libc::ENOTTY, libc::EINVAL, libc::EXDEV, libc::ENOSYS];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

#[async_trait]
impl DiskStore for ReflinkStore {
    fn kind(&self) -> DiskStoreKind {
        DiskStoreKind::Reflink
    }

    async fn create(&self, base: &Path, at: &Path) -> Result<DiskView, DiskError> {
        check_is_plain(base)?;
        self.clone_file(base, at).await?;
        Ok(DiskView { path: at.to_owned() })
    }

    async fn attach(&self, view: &DiskView) -> Result<AttachedDisk, DiskError> {
        attach_file(view)
    }

    async fn detach(&self, disk: AttachedDisk) -> Result<DiskView, DiskError> {
        Ok(disk.view)
    }

    async fn prepare_clone(&self, view: &DiskView) -> Result<(), DiskError> {
        let path = view.path.clone();
        Ok(blocking(move || write_out(&path)).await?)
    }

    async fn clone_stopped(&self, view: &DiskView, to: &Path) -> Result<DiskView, DiskError> {
        self.create(&view.path, to).await
    }

    async fn remove(&self, view: DiskView) -> Result<(), DiskError> {
        blocking(move || remove_file(&view)).await
    }

    async fn clone_file(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Ok(blocking(move || clone(&from, &to)).await?)
    }

    async fn free_bytes(&self) -> Result<u64, DiskError> {
        space(&self.rooms, Space::Free)
    }

    async fn total_bytes(&self) -> Result<u64, DiskError> {
        space(&self.rooms, Space::Total)
    }
}
