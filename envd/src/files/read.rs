//! Opening what may be read.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use wrenn_proto::envd::v1::FileKind;

use crate::files::entry::kind;
use crate::files::error::{FileError, Problem, Target};

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
