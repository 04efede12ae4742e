//! The root disk's size.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

use nix::sys::statvfs::fstatvfs;

use crate::failure::Failure;

/// The only disk a capsule has.
pub const ROOT_DEVICE: &str = "/dev/vda";

nix::ioctl_read!(device_size, 0x12, 114, u64); // BLKGETSIZE64 of linux/fs.h
nix::ioctl_write_ptr!(resize_ext4, b'f', 16, u64); // EXT4_IOC_RESIZE_FS of linux/ext4.h

/// Grows the root file system to its device, while mounted. Images are kept as small as they can be;
/// a host makes the disk larger by making the file longer, which costs it nothing.
pub fn grow_root() -> Result<(), Failure> {
    let device = File::open(ROOT_DEVICE).map_err(Failure::of(format!("opening {ROOT_DEVICE}")))?;
    let root = File::open("/").map_err(Failure::of("opening /"))?;
    let on_device = root.metadata().map_err(Failure::of("looking at /"))?.dev();
    if on_device != device.metadata().map_err(Failure::of(format!("looking at {ROOT_DEVICE}")))?.rdev() {
        // Started from something else; its size is not this program's business.
        return Ok(());
    }
    let mut bytes = 0_u64;
    // SAFETY: the kernel writes one u64 to the pointer, which is a live one's.
    unsafe { device_size(device.as_raw_fd(), &raw mut bytes) }
        .map_err(Failure::of(format!("measuring {ROOT_DEVICE}")))?;
    let block_size = fstatvfs(&root).map_err(Failure::of("measuring /"))?.fragment_size();
    let blocks = bytes / block_size;
    // SAFETY: the kernel reads one u64 from the pointer, which is a live one's. Nothing changes if the
    // file system has this size already.
    unsafe { resize_ext4(root.as_raw_fd(), &raw const blocks) }.map_err(Failure::of("growing /"))?;
    Ok(())
}
