//! One disk, one machine.

use std::{
    fs::{OpenOptions, TryLockError},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

use super::DriverError;
use crate::failure::Doing as _;

/// A disk that is one machine's. The lock belongs to the open file: it is the VMM's that is given this, or a duplicate of
/// it, and goes with it.
pub struct OpenDisk {
    pub descriptor: OwnedFd,
    /// Of its file; zero for a device.
    pub bytes: u64,
    /// A block device, not a file.
    pub is_device: bool,
}

/// Opens a disk for one machine alone.
pub fn open_disk(path: &Path) -> Result<OpenDisk, DriverError> {
    let doing = || format!("opening the disk {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    let metadata = file.metadata().doing(doing)?;
    match file.try_lock() {
        Ok(()) => Ok(OpenDisk {
            bytes: metadata.size(),
            is_device: metadata.file_type().is_block_device(),
            descriptor: file.into(),
        }),
        Err(TryLockError::WouldBlock) => Err(DriverError::DiskInUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(error).doing(|| format!("locking {}", path.display()))?,
    }
}
