//! What a VMM says, in files that are nowhere on a disk and do not grow.

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use crate::failure::{Doing as _, Failure};

/// A VMM's last words are kept up to this many bytes; what comes after is refused to it.
pub const LOG_SIZE: u64 = 64 << 10;
/// How much of them an error carries.
const LAST_WORDS: usize = 2000;
/// What is read of a file at most.
const LONGEST: u64 = 1 << 20;

/// A file that is nowhere on a disk; of a fixed size if one is given.
pub fn memory_file(name: &CStr, size: Option<u64>) -> Result<OwnedFd, Failure> {
    let doing = || "making a file in memory";
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).doing(doing)?;
    if let Some(size) = size {
        let file = File::from(file);
        file.set_len(size).doing(doing)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals)).doing(doing)?;
        return Ok(file.into());
    }
    Ok(file)
}

/// The last of what was written to a file of a fixed size, in which what is not written is zero.
pub fn last_words(log: &OwnedFd) -> String {
    let content = written(log).unwrap_or_default();
    let start = content.len().saturating_sub(LAST_WORDS);
    String::from_utf8_lossy(&content[start..]).trim().to_owned()
}

/// All of it.
pub fn written(log: &OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(log.try_clone()?);
    let mut content = vec![0; usize::try_from(file.metadata()?.len().min(LONGEST)).unwrap_or(0)];
    let length = file.read_at(&mut content, 0)?;
    content.truncate(length);
    let length = content.iter().position(|byte| *byte == 0).unwrap_or(content.len());
    content.truncate(length);
    Ok(content)
}

/// One of the files in memory that an adopted VMM was given. Whatever is there instead is neither waited
/// for nor changed.
pub fn descriptor_of(pid: i32, number: i32) -> Result<OwnedFd, Failure> {
    let path = format!("/proc/{pid}/fd/{number}");
    let doing = || format!("opening {path}");
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).doing(doing)?;
    if !file.metadata().doing(doing)?.is_file() {
        return Err(Failure::new(doing(), io::Error::from(io::ErrorKind::InvalidData)));
    }
    Ok(file.into())
}
