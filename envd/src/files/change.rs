//! Directories made, entries moved and removed.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::files::error::{FileError, Problem, Target};
use crate::files::path::split;

/// Directories below one another that a removal goes into.
const DEEPEST: usize = 4096;
/// How often a directory into which something was put during its removal is emptied again.
const ATTEMPTS: usize = 16;

/// A directory to work in. Links on the way to it are followed.
///
/// # Errors
/// It is not there, no directory, or may not be entered.
pub fn enter(target: &Target, path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, path, flags, Mode::empty()).map_err(target.with(path).cannot("enter"))
}

/// Makes a directory with all its missing parents and enters it. Those made stay when a later one cannot be.
///
/// # Errors
/// Something else is in the way, or the user may not.
pub fn make_directory(target: &Target) -> Result<OwnedFd, FileError> {
    let mut directory = enter(target, Path::new("/"))?;
    let mut reached = PathBuf::from("/");
    for component in target.path.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::ParentDir => OsStr::new(".."),
            _ => continue,
        };
        reached.push(name);
        directory = step_into(&directory, name, &target.with(&reached), reached == target.path)?;
    }
    Ok(directory)
}

fn step_into(directory: &OwnedFd, name: &OsStr, target: &Target, last: bool) -> Result<OwnedFd, FileError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = || openat(directory, name, flags, Mode::empty());
    match open() {
        Err(Errno::ENOENT) => {}
        Err(Errno::ENOTDIR) if last => return Err(target.is(Problem::InTheWay)),
        result => return result.map_err(target.cannot("enter")),
    }
    match mkdirat(directory, name, Mode::from_bits_truncate(0o755)) {
        // Somebody else was faster.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(target.cannot("make directory")(error)),
    }
    match open() {
        // A link that leads nowhere has the name.
        Err(Errno::ENOENT | Errno::ENOTDIR) => Err(target.is(Problem::InTheWay)),
        result => result.map_err(target.cannot("enter")),
    }
}

/// Moves within one file system. Replaces a file in the way, but no directory.
///
/// # Errors
/// Nothing was moved.
pub fn move_entry(from: &Target, to: &Target) -> Result<(), FileError> {
    let (from_parent, from_name) = split(from)?;
    let (to_parent, to_name) = split(to)?;
    let from_directory = enter(from, from_parent)?;
    let to_directory = enter(to, to_parent)?;
    let quiet = renameat2(&from_directory, from_name, &to_directory, to_name, RenameFlags::RENAME_NOREPLACE);
    let result = match quiet {
        // The kernel lets no directory replace a file nor a file a directory, but one directory an empty one.
        Err(Errno::EEXIST) if !is_directory(&to_directory, to_name) => {
            renameat(&from_directory, from_name, &to_directory, to_name)
        }
        other => other,
    };
    result.map_err(|error| match error {
        Errno::EEXIST | Errno::ENOTEMPTY | Errno::EISDIR | Errno::ENOTDIR => to.is(Problem::InTheWay),
        Errno::EXDEV => to.is(Problem::OtherFileSystem),
        Errno::EINVAL => to.is(Problem::Below),
        error => from.cannot("move")(error),
    })
}

fn is_directory(directory: &OwnedFd, name: &OsStr) -> bool {
    let stat = fstatat(directory, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
    stat.is_ok_and(|it| SFlag::from_bits_truncate(it.st_mode & libc::S_IFMT) == SFlag::S_IFDIR)
}

/// Removes an entry; a directory with all that is in it. No link is followed on the way down. What is not there is
/// removed already.
///
/// # Errors
/// Something may not be removed; what was removed before it stays so.
pub fn remove(target: &Target) -> Result<(), FileError> {
    let (parent, name) = split(target)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = match openat(AT_FDCWD, parent, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        result => result.map_err(target.cannot("reach"))?,
    };
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => remove_directory(&parent, name, target),
        Err(error) => Err(target.cannot("remove")(error)),
    }
}

fn remove_directory(parent: &OwnedFd, name: &OsStr, target: &Target) -> Result<(), FileError> {
    for _ in 0..ATTEMPTS {
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => empty(parent, name, target)?,
            Err(error) => return Err(target.cannot("remove")(error)),
        }
    }
    Err(target.is(Problem::Changed))
}

/// A directory that the removal has gone down from.
struct Above {
    identity: (u64, u64),
    /// The name by which it went down.
    name: CString,
}

/// Removes what is in a directory, with one descriptor however deep it goes: up again by `..`, which must lead to
/// where it came from.
fn empty(parent: &OwnedFd, name: &OsStr, target: &Target) -> Result<(), FileError> {
    let mut current = open_directory(parent, name).map_err(target.cannot("open"))?;
    let mut above: Vec<Above> = Vec::new();
    let mut attempts = 0;
    loop {
        if let Some(name) = unlink_files(&current).map_err(target.cannot("empty"))? {
            if above.len() >= DEEPEST {
                return Err(target.is(Problem::TooDeep));
            }
            let identity = identity(&current).map_err(target.cannot("look at"))?;
            let below = match open_directory(&current, name.as_c_str()) {
                Err(Errno::ENOENT) => continue,
                result => result.map_err(target.cannot("open"))?,
            };
            above.push(Above { identity, name });
            current = below;
            continue;
        }
        let Some(Above { identity: known, name }) = above.pop() else { return Ok(()) };
        let up = open_directory(&current, "..").map_err(target.cannot("leave"))?;
        if identity(&up).map_err(target.cannot("look at"))? != known {
            return Err(target.is(Problem::Changed));
        }
        match unlinkat(&up, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if attempts < ATTEMPTS => attempts += 1,
            Err(error) => return Err(target.cannot("empty")(error)),
        }
        current = up;
    }
}

fn open_directory<P: ?Sized + nix::NixPath>(parent: impl AsFd, name: &P) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn identity(directory: &OwnedFd) -> nix::Result<(u64, u64)> {
    let FileStat { st_dev, st_ino, .. } = fstat(directory)?;
    Ok((st_dev, st_ino))
}

/// Removes everything but directories; the first of these, if there is one.
fn unlink_files(directory: &OwnedFd) -> nix::Result<Option<CString>> {
    let mut entries = Dir::from_fd(open_directory(directory, ".")?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == Some(Type::Directory) {
            return Ok(Some(name.to_owned()));
        }
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // Not every file system tells the type beforehand.
            Err(Errno::EISDIR) => return Ok(Some(name.to_owned())),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
