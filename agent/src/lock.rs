//! One agent per `WRENN_DIR`: a lock that the kernel drops when its holder dies.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another wrenn-agent (pid {holder}) serves {}", directory.display())]
    Held { directory: PathBuf, holder: String },
    #[error("cannot lock {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Held for as long as this process serves the directory.
#[derive(Debug)]
pub struct DirectoryLock(
    #[expect(dead_code, reason = "owned for its drop, which lets go of the lock")] Flock<File>,
);

impl DirectoryLock {
    /// Takes the lock at `path` for `directory`, or says who has it.
    pub fn acquire(directory: &Path, path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed)?;
                return Err(LockError::Held {
                    directory: directory.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        lock.set_len(0).map_err(failed)?;
        lock.rewind().map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        Ok(Self(lock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = DirectoryLock::acquire(dir.path(), &path).unwrap();
        let error = DirectoryLock::acquire(dir.path(), &path).unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        drop(held);
        DirectoryLock::acquire(dir.path(), &path).unwrap();
    }
}
