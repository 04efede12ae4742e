//! Opening what may be read.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use wrenn_proto::envd::v1::FileKind;

use crate::files::entry::kind;
use crate::files::error::{FileError, Problem, Target};

/// Bytes of a file that the kernel makes up which are read at once, at most.
const LITTLE: u64 = 64 << 10;

/// Whether the kernel may make the file up while it is read, as in procfs and sysfs. What it says of the size of such a
/// file is no promise: mostly nothing, or a page. An empty file and one that has only holes look the same.
pub fn may_be_made_up(stat: &FileStat) -> bool {
    stat.st_size == 0 || stat.st_blocks == 0
}

/// All that a file contains, if that is little: then its size is known before any of it is sent, and is what is sent.
pub fn read_little(file: &File) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    file.take(LITTLE + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= LITTLE).then_some(content)
}

/// Opens a regular file for reading. Anything else is only looked at, never opened: that alone can wait for ever
/// (a pipe) or do something (a device).
///
/// # Errors
/// It is not there, not a regular file, or may not be read.
pub fn open_regular(target: &Target) -> Result<(File, FileStat), FileError> {
    let handle = openat(AT_FDCWD, &target.path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(target.cannot("open"))?;
    let stat = fstat(&handle).map_err(target.cannot("look at"))?;
    if kind(&stat) != FileKind::File {
        return Err(target.is(Problem::NotRegular));
    }
    let file = reopen(&handle, OFlag::O_RDONLY).map_err(target.cannot("read"))?;
    Ok((file, stat))
}

/// What the handle refers to, whatever has its name by now. A thread may always follow its own process's links.
fn reopen(handle: &OwnedFd, flags: OFlag) -> nix::Result<File> {
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    Ok(open(Path::new(&link), flags, Mode::empty())?.into())
}
