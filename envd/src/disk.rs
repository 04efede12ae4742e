//! The root file system's size.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;

/// Unit of `/sys/dev/block/*/size`, whatever the device's own is; `SECTOR_SIZE` of linux/blkdev.h.
const SECTOR: u64 = 512;

nix::ioctl_write_ptr!(resize_ext4, b'f', 16, u64); // EXT4_IOC_RESIZE_FS of linux/ext4.h

#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    #[error("the root file system is not ext4")]
    NotExt4,
    #[error("cannot {operation}")]
    Kernel {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Lets the ext4 mounted at `root` take the whole of its device, while it is used. Nothing happens if it does already.
///
/// # Errors
/// It is another file system, or the kernel refused; then it is as large as it was.
pub fn grow(root: &Path) -> Result<(), GrowError> {
    // The kernel refuses a second one while it does the first.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = |operation| move |source| GrowError::Kernel { operation, source };
    let directory = File::open(root).map_err(failed("open the root directory"))?;
    let device = directory.metadata().map_err(failed("look at the root directory"))?.dev();
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let sectors = match fs::read_to_string(format!("/sys/dev/block/{number}/size")) {
        // On no block device at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(GrowError::NotExt4),
        result => result.map_err(failed("read the disk's size"))?,
    };
    let sectors: u64 = sectors
        .trim()
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        .map_err(failed("understand the disk's size"))?;
    let block = fstatvfs(&directory).map_err(io::Error::from).map_err(failed("measure the file system"))?;
    let blocks = sectors.saturating_mul(SECTOR) / block.fragment_size().max(1);
    // SAFETY: the kernel reads one u64 from the pointer, which is a live one's.
    match unsafe { resize_ext4(directory.as_raw_fd(), &raw const blocks) } {
        Ok(_) => Ok(()),
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => Err(GrowError::NotExt4),
        Err(errno) => Err(failed("grow the file system")(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A real disk that grows is the business of tests with real machines: it takes one to make one.
    #[test]
    fn another_file_system_is_refused() {
        assert!(matches!(grow(Path::new("/proc")), Err(GrowError::NotExt4)));
        let nowhere = grow(Path::new("/nowhere"));
        assert!(matches!(nowhere, Err(GrowError::Kernel { operation: "open the root directory", .. })));
    }
}
