//! A file's new content, whole or not at all.
//!
//! ```text
//!   start ─▶ collecting ── end ──▶ renamed over the target
//!                │
//!                └── stream breaks off, error, call dropped ──▶ the file aside is removed
//! ```
//!
//! It is written to a file aside in the target's own directory, which has its final owner and mode before it gets
//! its name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use wrenn_proto::envd::v1::{FileEntry, FileKind};

use crate::files::actor::Actor;
use crate::files::change::{enter, make_directory};
use crate::files::entry::{PERMISSIONS, describe, kind, name_owners};
use crate::files::error::{FileError, Problem, Target};
use crate::files::path::split;

/// Of a file that is new, unless asked otherwise.
const DEFAULT_MODE: u32 = 0o644;
/// What a replaced file hands on: not the bits that lend its owner's rights to whoever runs it, as with any write.
const INHERITED: u32 = 0o777;
/// Links to links that are followed, as the kernel does.
const MOST_LINKS: usize = 40;
/// Names tried for the file aside.
const ATTEMPTS: usize = 8;
const ASIDE: &str = ".wrenn-";
const ASIDE_DIGITS: usize = 16;

/// Whether this is the name of a file that is being written aside.
pub fn is_aside(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|it| it.strip_prefix(ASIDE));
    digits.is_some_and(|it| it.len() == ASIDE_DIGITS && it.bytes().all(|it| it.is_ascii_hexdigit()))
}

/// A file that is being written. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct Writing {
    actor: Actor,
    target: Target,
    mode: u32,
    /// Owner and group of the file that is replaced.
    owner: Option<(u32, u32)>,
    aside: Aside,
}

/// The file aside; removed when dropped, unless it got its name or was removed before.
#[derive(Debug)]
struct Aside {
    actor: Actor,
    directory: Arc<OwnedFd>,
    name: OsString,
    file: Arc<File>,
    /// Its final name in the same directory.
    last: OsString,
    /// Nothing is left to be removed.
    settled: bool,
}

impl Writing {
    /// Finds what is to be replaced and makes the file aside.
    ///
    /// # Errors
    /// What is there is no regular file, or the user may not; nothing was made then but parents.
    pub async fn start(
        actor: Actor,
        target: Target,
        mode: Option<u32>,
        make_parents: bool,
    ) -> Result<Self, FileError> {
        let work = {
            let actor = actor.clone();
            move || Self::prepare(actor, target, mode, make_parents)
        };
        actor.run(work).await
    }

    fn prepare(
        actor: Actor,
        target: Target,
        mode: Option<u32>,
        make_parents: bool,
    ) -> Result<Self, FileError> {
        let place = Place::find(&target, make_parents)?;
        let (mode, owner) = match &place.replaced {
            Some(old) => (mode.unwrap_or(old.st_mode & INHERITED), Some((old.st_uid, old.st_gid))),
            None => (mode.unwrap_or(DEFAULT_MODE), None),
        };
        let (name, file) = create_aside(&place.directory).map_err(target.cannot("make a file beside"))?;
        let aside = Aside {
            actor: actor.clone(),
            directory: Arc::new(place.directory),
            name,
            file: Arc::new(file),
            last: place.name,
            settled: false,
        };
        Ok(Self { actor, target, mode, owner, aside })
    }

    /// Does work that appends to it.
    ///
    /// # Errors
    /// No thread could do it.
    pub async fn append<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File, &Target) -> T + Send + 'static,
    ) -> Result<T, FileError> {
        let (file, target) = (Arc::clone(&self.aside.file), self.target.clone());
        self.actor.run(move || Ok(work(&file, &target))).await
    }

    /// Gives the file its owner, mode and name; tells what it is now.
    ///
    /// # Errors
    /// The target is as it was, and nothing else is left.
    pub async fn finish(mut self) -> Result<FileEntry, FileError> {
        let actor = self.actor.clone();
        actor.run(move || self.rename().inspect_err(|_| self.aside.remove())).await
    }

    /// Leaves the target as it was, and nothing else.
    pub async fn abandon(mut self) {
        let actor = self.actor.clone();
        let remove = move || {
            self.aside.remove();
            Ok(())
        };
        // If no worker could do it, what is dropped here tries again.
        let _ = actor.run(remove).await;
    }

    fn rename(&mut self) -> Result<FileEntry, FileError> {
        let Self { target, aside, owner, mode, .. } = self;
        if let Some((uid, gid)) = *owner {
            // Who may not give a file away keeps it; who may not even give it to the group, too.
            let _ = fchown(&*aside.file, None, Some(Gid::from_raw(gid)));
            let _ = fchown(&*aside.file, Some(Uid::from_raw(uid)), None);
        }
        fchmod(&*aside.file, Mode::from_bits_truncate(*mode)).map_err(target.cannot("set the mode of"))?;
        let stat = fstat(&*aside.file).map_err(target.cannot("look at"))?;
        let directory = &*aside.directory;
        renameat(directory, aside.name.as_os_str(), directory, aside.last.as_os_str())
            .map_err(target.cannot("replace"))?;
        aside.settled = true;
        let mut entry = describe(&target.path, &stat);
        name_owners(std::slice::from_mut(&mut entry), &self.actor.etc());
        Ok(entry)
    }
}

impl Aside {
    /// As the user, on a worker.
    fn remove(&mut self) {
        // Removed by somebody else, or its directory was: gone either way.
        let _ = unlinkat(&*self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        self.settled = true;
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let (actor, directory, name) =
            (self.actor.clone(), Arc::clone(&self.directory), std::mem::take(&mut self.name));
        // There is a runtime wherever a call or its work is dropped, except at the very end of the process.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let remove = move || {
                let _ = unlinkat(&*directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
                Ok(())
            };
            let _ = actor.run(remove).await;
        });
    }
}

/// Where the content goes, at the end of all links.
struct Place {
    directory: OwnedFd,
    name: OsString,
    replaced: Option<FileStat>,
}

impl Place {
    fn find(target: &Target, make_parents: bool) -> Result<Self, FileError> {
        let (parent, name) = split(target).map_err(|_| target.is(Problem::NotRegular))?;
        let mut directory =
            if make_parents { make_directory(&target.with(parent))? } else { enter(target, parent)? };
        let mut name = name.to_owned();
        for _ in 0..MOST_LINKS {
            let stat = match fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => return Ok(Self { directory, name, replaced: None }),
                result => result.map_err(target.cannot("look at"))?,
            };
            match kind(&stat) {
                FileKind::File => {
                    may_write(&directory, &name).map_err(target.cannot("write"))?;
                    return Ok(Self { directory, name, replaced: Some(stat) });
                }
                FileKind::Symlink => {
                    refuse_planted(&directory, &stat, target)?;
                    (directory, name) = follow(&directory, &name, target)?;
                }
                _ => return Err(target.is(Problem::NotRegular)),
            }
        }
        Err(target.cannot("follow")(Errno::ELOOP))
    }
}

/// Where a link leads: the directory and the name in it.
fn follow(directory: &OwnedFd, name: &OsStr, target: &Target) -> Result<(OwnedFd, OsString), FileError> {
    let aim = PathBuf::from(readlinkat(directory, name).map_err(target.cannot("follow"))?);
    let last = aim.file_name().ok_or_else(|| target.is(Problem::NotRegular))?.to_owned();
    let parent = match aim.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let entered = openat(directory, parent, flags, Mode::empty()).map_err(target.cannot("follow"))?;
    Ok((entered, last))
}

/// The rule of `fs.protected_symlinks`, which the kernel applies only to what it follows itself: in a directory
/// like `/tmp`, a link is good for its owner and for links of the directory's owner.
fn refuse_planted(directory: &OwnedFd, link: &FileStat, target: &Target) -> Result<(), FileError> {
    let around = fstat(directory).map_err(target.cannot("look at"))?;
    let open_to_all = around.st_mode & (libc::S_ISVTX | libc::S_IWOTH) == libc::S_ISVTX | libc::S_IWOTH;
    let trusted = link.st_uid == nix::unistd::geteuid().as_raw() || link.st_uid == around.st_uid;
    if open_to_all && !trusted { Err(target.is(Problem::Planted)) } else { Ok(()) }
}

/// Whether the user may write the file itself, although only its directory will be changed.
fn may_write(directory: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = openat(directory, name, flags, Mode::empty())?;
    let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
    // SAFETY: the descriptor is open and the path an empty string. libc's own wrapper would emulate the flags
    // with the ids of the process where the kernel is old; the call itself asks for those of the thread.
    let result = unsafe {
        libc::syscall(libc::SYS_faccessat2, handle.as_fd().as_raw_fd(), c"".as_ptr(), libc::W_OK, flags)
    };
    Errno::result(result).map(drop)
}

fn create_aside(directory: &OwnedFd) -> nix::Result<(OsString, File)> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut result = Err(Errno::EEXIST);
    for _ in 0..ATTEMPTS {
        let number = RandomState::new().build_hasher().finish();
        let name = OsString::from(format!("{ASIDE}{number:0ASIDE_DIGITS$x}"));
        match openat(directory, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(file) => return Ok((name, File::from(file))),
            Err(Errno::EEXIST) => result = Err(Errno::EEXIST),
            Err(error) => return Err(error),
        }
    }
    result
}

/// Checks the permission bits of a request.
///
/// # Errors
/// There are others among them.
pub fn check_mode(mode: Option<u32>) -> Result<(), crate::launch::Invalid> {
    match mode {
        Some(mode) if mode & !PERMISSIONS != 0 => Err(crate::launch::Invalid {
            field: "mode",
            message: format!("{mode:#o} is more than permission bits (at most 0o7777)"),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aside_are_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let handle = enter(&Target { field: "path", path: "/".into() }, directory.path()).expect("enter");
        let (name, _) = create_aside(&handle).expect("a file");
        assert!(is_aside(&name), "{name:?}");
        for other in [".wrenn-", ".wrenn-0123", "wrenn-0123456789abcdef", ".wrenn-0123456789abcdeg"] {
            assert!(!is_aside(OsStr::new(other)), "{other}");
        }
    }
}
