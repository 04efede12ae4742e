//! A file as a block device.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, OpenOptionsExt as _},
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::errno::Errno;

use super::number::{DeviceNumber, FileId};
use crate::failure::{Doing as _, Failure};

/// How often another process may take the free device we were just told of.
const ATTEMPTS: u32 = 16;

/// One at a time in this process: they would only take the free device from each other.
static ATTACHING: Mutex<()> = Mutex::new(());

// Numbers and structures of linux/loop.h.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LO_FLAGS_READ_ONLY: u32 = 1;
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

/// What may be done with the file through the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A loop device that goes away with its last user: this value, or what is mounted or mapped from it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    number: DeviceNumber,
    open: File,
}

impl LoopDevice {
    pub fn attach(image: &Path, access: Access) -> Result<Self, Failure> {
        let doing = || format!("attaching {} to a loop device", image.display());
        let writable = access == Access::ReadWrite;
        let file = OpenOptions::new().read(true).write(writable).open(image).doing(doing)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").doing(doing)?;
        let _turn = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = Err(io::Error::from(Errno::EBUSY));
        for _ in 0..ATTEMPTS {
            result = Self::attach_once(&control, &file, image, access);
            match &result {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                _ => break,
            }
        }
        result.doing(doing)
    }

    fn attach_once(control: &File, image: &File, path: &Path, access: Access) -> io::Result<Self> {
        // SAFETY: the request takes no argument.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let device = Self::open_path(PathBuf::from(format!("/dev/loop{number}")), access)?;
        // SAFETY: plain data, for which all zeroes is valid: no offset, no limit, the default block size.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = image.as_raw_fd().cast_unsigned();
        config.info.flags = LO_FLAGS_AUTOCLEAR;
        if access == Access::ReadOnly {
            config.info.flags |= LO_FLAGS_READ_ONLY;
        }
        // What `losetup` shows; cut off so that the last byte stays zero.
        for (to, from) in config.info.file_name[..63].iter_mut().zip(path.as_os_str().as_bytes()) {
            *to = *from;
        }
        // SAFETY: the request reads one such structure, which lives through the call.
        Errno::result(unsafe { libc::ioctl(device.open.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
        Ok(device)
    }

    /// One that is there already, as something else was told of it.
    pub fn open(number: DeviceNumber) -> Result<Self, Failure> {
        let doing = || format!("opening the loop device {number}");
        let entry = fs::read_link(format!("/sys/dev/block/{number}")).doing(doing)?;
        let name = entry.file_name().unwrap_or_default();
        Self::open_path(Path::new("/dev").join(name), Access::ReadOnly).doing(doing)
    }

    fn open_path(path: PathBuf, access: Access) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite).custom_flags(libc::O_CLOEXEC);
        let open = options.open(&path)?;
        let number = DeviceNumber::from_device(open.metadata()?.rdev());
        Ok(Self { path, number, open })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// The file behind it.
    pub fn backing(&self) -> Result<FileId, Failure> {
        let doing = || format!("asking {} for its file", self.path.display());
        // SAFETY: plain data, for which all zeroes is valid.
        let mut info: LoopInfo64 = unsafe { std::mem::zeroed() };
        // SAFETY: the request writes one such structure, which lives through the call.
        let asked = unsafe { libc::ioctl(self.open.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        Errno::result(asked).doing(doing)?;
        Ok(FileId { device: info.device, inode: info.inode })
    }

    /// Whether a flush of the device syncs the file, as it does unless it is told otherwise. The device keeps the
    /// setting for its next file: on kernels from 6.11 on it must be taken back.
    pub fn set_flushes(&self, flushes: bool) -> Result<(), Failure> {
        let name = self.path.file_name().unwrap_or_default();
        let setting = Path::new("/sys/block").join(name).join("queue/write_cache");
        let value = if flushes { "write back" } else { "write through" };
        fs::write(&setting, value).doing(|| format!("writing {value:?} to {}", setting.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernel_expects() {
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(size_of::<LoopInfo64>(), 232);
    }
}
