//! What the kernel knows a block device and a file by.

use std::{fmt, fs::Metadata, os::unix::fs::MetadataExt as _, str::FromStr};

/// A block device, written `major:minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    /// From `st_rdev`, or the number that device-mapper answers with, which is the same for all minors there are.
    pub fn from_device(device: u64) -> Self {
        Self { major: libc::major(device), minor: libc::minor(device) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The text is no device number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotANumber;

impl FromStr for DeviceNumber {
    type Err = NotANumber;

    fn from_str(text: &str) -> Result<Self, NotANumber> {
        let (major, minor) = text.split_once(':').ok_or(NotANumber)?;
        let number = |text: &str| text.parse().map_err(|_| NotANumber);
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

/// A file, whatever it is called; its hard links are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let number = DeviceNumber { major: 7, minor: 300 };
        assert_eq!(number.to_string(), "7:300");
        assert_eq!("7:300".parse(), Ok(number));
        for wrong in ["", "7", "7:", ":3", "7:3:1", "/dev/loop3", "-7:3"] {
            assert_eq!(wrong.parse::<DeviceNumber>(), Err(NotANumber), "{wrong}");
        }
    }

    #[test]
    fn large_minors_are_taken_apart_as_the_kernel_puts_them_together() {
        // new_encode_dev of linux/kdev_t.h.
        let encode = |major: u64, minor: u64| (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        for (major, minor) in [(7, 0), (253, 255), (253, 256), (253, 70_000)] {
            let number = DeviceNumber::from_device(encode(major, minor));
            assert_eq!((u64::from(number.major), u64::from(number.minor)), (major, minor));
        }
    }
}
