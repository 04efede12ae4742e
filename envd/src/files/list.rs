//! The entries of a directory, down to a depth.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use wrenn_proto::envd::v1::{FileEntry, FileKind};

use crate::files::entry::look;
use crate::files::error::{FileError, Problem, Target};

/// The deepest listing.
pub const DEEPEST: u32 = 16;
/// Entries in one answer.
const MOST: usize = 10_000;
/// Bytes of names, paths and the rest in one answer, so that it passes every hop in one message (4 MiB).
const MOST_BYTES: usize = 3 << 20;
/// What an entry takes besides its texts.
const ENTRY_BYTES: usize = 64;

/// Lists a directory. A directory within it that may not be read, or that is gone, has no children.
///
/// # Errors
/// It cannot be read, or holds too much for one answer.
pub fn list(target: &Target, depth: u32) -> Result<Vec<FileEntry>, FileError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = openat(AT_FDCWD, &target.path, flags, Mode::empty()).map_err(target.cannot("open"))?;
    let mut listing = Listing { root: target, entries: 0, bytes: 0 };
    listing.directory(directory, target, depth.clamp(1, DEEPEST))
}

struct Listing<'a> {
    root: &'a Target,
    entries: usize,
    bytes: usize,
}

impl Listing<'_> {
    fn directory(
        &mut self,
        directory: OwnedFd,
        target: &Target,
        depth: u32,
    ) -> Result<Vec<FileEntry>, FileError> {
        let mut directory = Dir::from_fd(directory).map_err(target.cannot("read"))?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let entry = entry.map_err(target.cannot("read"))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name == "." || name == ".." {
                continue;
            }
            self.count(name.len() + target.path.as_os_str().len() + ENTRY_BYTES)?;
            names.push(name);
        }
        names.sort_unstable();
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let target = target.with(target.path.join(&name));
            // Gone since it was read.
            let Ok(mut entry) = look(&directory, &name, &target) else { continue };
            self.bytes += entry.symlink_target.as_ref().map_or(0, String::len);
            if depth > 1 && entry.kind() == FileKind::Directory {
                entry.children = self.below(&directory, &name, &target, depth - 1)?;
            }
            entries.push(entry);
        }
        entries.sort_by(by_name);
        Ok(entries)
    }

    fn below(
        &mut self,
        directory: &Dir,
        name: &OsStr,
        target: &Target,
        depth: u32,
    ) -> Result<Vec<FileEntry>, FileError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(directory, name, flags, Mode::empty()) {
            Ok(below) => self.directory(below, target, depth),
            // What envd has run out of is no property of the directory.
            Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => Err(target.cannot("open")(error)),
            Err(_) => Ok(Vec::new()),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), FileError> {
        self.entries += 1;
        self.bytes += bytes;
        if self.entries > MOST || self.bytes > MOST_BYTES {
            return Err(self.root.is(Problem::TooMany));
        }
        Ok(())
    }
}

fn by_name(one: &FileEntry, other: &FileEntry) -> Ordering {
    one.name.cmp(&other.name)
}
