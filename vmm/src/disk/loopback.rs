//! A file as a block device.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use crate::failure::{Doing as _, Failure};

/// How often another process may take the free device we were just told of.
const ATTEMPTS: u32 = 16;

// Numbers and structures of linux/loop.h.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// A loop device that goes away with its last user: this value, or what is mounted from it.
pub struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    pub fn attach(image: &Path) -> Result<Self, Failure> {
        let doing = || format!("attaching {} to a loop device", image.display());
        let file = OpenOptions::new().read(true).write(true).open(image).doing(doing)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").doing(doing)?;
        let mut result = Err(io::Error::from(Errno::EBUSY));
        for _ in 0..ATTEMPTS {
            result = Self::attach_once(&control, &file, image);
            match &result {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                _ => break,
            }
        }
        result.doing(doing)
    }

    fn attach_once(control: &File, image: &File, path: &Path) -> io::Result<Self> {
        // SAFETY: the request takes no argument.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&device)?;
        // SAFETY: plain data, for which all zeroes is valid: no offset, no limit, the default block size.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = image.as_raw_fd().cast_unsigned();
        config.info.flags = LO_FLAGS_AUTOCLEAR;
        // What `losetup` shows; cut off so that the last byte stays zero.
        for (to, from) in config.info.file_name[..63].iter_mut().zip(path.as_os_str().as_bytes()) {
            *to = *from;
        }
        // SAFETY: the request reads one such structure, which lives through the call.
        Errno::result(unsafe { libc::ioctl(open.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
        Ok(Self { path: device, _open: open })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_as_long_as_the_kernel_expects() {
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
