//! Ranges of one file in another: shared where the file system can, copied where not.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use nix::errno::Errno;

use super::{CHUNK, runs};
use crate::disk::is_unsupported;

/// Shorter stretches are copied: to share one costs about as much as to copy this.
const WORTH_SHARING: u64 = 64 << 10;

/// Lets files share blocks until the file system has refused it.
pub(super) struct Sharing {
    refused: bool,
}

impl Sharing {
    pub fn new() -> Self {
        Self { refused: false }
    }

    /// Makes the target's `length` bytes at `to` those of `source` at `from`, if that is possible and worth it.
    pub fn share(
        &mut self,
        (source, from): (&File, u64),
        (target, to): (&File, u64),
        length: u64,
    ) -> io::Result<bool> {
        if self.refused || length < WORTH_SHARING {
            return Ok(false);
        }
        match share(source, from, target, to, length) {
            Ok(()) => Ok(true),
            Err(error) if is_unsupported(&error) => {
                self.refused = true;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Brings ranges of other files into one.
pub(super) struct RangeWriter<'a> {
    target: &'a File,
    sharing: Sharing,
    buffer: Vec<u8>,
}

impl<'a> RangeWriter<'a> {
    pub fn new(target: &'a File) -> Self {
        Self { target, sharing: Sharing::new(), buffer: vec![0; CHUNK as usize] }
    }

    /// Makes the target's `length` bytes at `to` those of `source` at `from`. What is zero is left out: the target
    /// must have a hole there.
    pub fn bring(&mut self, source: &File, from: u64, to: u64, length: u64) -> io::Result<()> {
        if self.sharing.share((source, from), (self.target, to), length)? {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            let part = (length - done).min(CHUNK);
            let content = &mut self.buffer[..part as usize];
            source.read_exact_at(content, from + done)?;
            for (zero, start, length) in runs(content) {
                if !zero {
                    self.target.write_all_at(&content[start..start + length], to + done + start as u64)?;
                }
            }
            done += part;
        }
        Ok(())
    }
}

fn share(source: &File, from: u64, target: &File, to: u64, length: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: from,
        src_length: length,
        dest_offset: to,
    };
    // SAFETY: the request reads one such structure, which lives through the call; both files are open.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    Errno::result(result)?;
    Ok(())
}
