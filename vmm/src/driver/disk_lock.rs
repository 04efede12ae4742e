//! One disk, one machine.

use std::{
    fs::{OpenOptions, TryLockError},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
};

use super::DriverError;
use crate::failure::Doing as _;

/// Opens a disk for one machine alone, and says how large its file is. The lock belongs to the open file: it is the
/// VMM's that is given this, or a duplicate of it, and goes with it.
pub fn open_disk(path: &Path) -> Result<(OwnedFd, u64), DriverError> {
    let doing = || format!("opening the disk {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    let bytes = file.metadata().doing(doing)?.size();
    match file.try_lock() {
        Ok(()) => Ok((file.into(), bytes)),
        Err(TryLockError::WouldBlock) => Err(DriverError::DiskInUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(error).doing(|| format!("locking {}", path.display()))?,
    }
}
