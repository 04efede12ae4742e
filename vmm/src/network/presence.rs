//! Who on this host needs its packet filter rules: every allocator, and every machine, though its allocator may be away.
//!
//! A lock file tells of the allocators: each holds it shared, and the one that can have it alone is the last. Whoever
//! comes meanwhile waits until the last one is done, and then makes its rules anew.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{NetworkError, namespace, rules};
use crate::{
    failure::{Doing as _, Failure},
    paths::create_directory,
};

/// Beside the agents' own directories there.
pub const DIRECTORY: &str = "/run/wrenn";
const FILE: &str = "/run/wrenn/network.lock";

/// A file to be locked, which all agents of the host share.
pub fn lock_file(path: &Path) -> Result<File, Failure> {
    create_directory(path.parent().unwrap_or(Path::new("/")), 0o700)?;
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.doing(|| format!("opening {}", path.display()))
}

/// One allocator that is there. The kernel forgets it with the process.
#[derive(Debug)]
pub struct Presence(Flock<File>);

impl Presence {
    /// To be called before the host's rules are made. Waits while another one removes them.
    pub fn announce() -> Result<Self, Failure> {
        let doing = || format!("locking {FILE}");
        let file = lock_file(Path::new(FILE))?;
        let locked = Flock::lock(file, FlockArg::LockShared);
        Ok(Self(locked.map_err(|(_, errno)| errno).doing(doing)?))
    }

    /// Removes the host's rules if nobody needs them.
    pub fn leave(self) -> Result<(), NetworkError> {
        match self.0.relock(FlockArg::LockExclusiveNonblock) {
            Ok(()) => {}
            Err(Errno::EWOULDBLOCK) => return Ok(()),
            Err(errno) => return Err(Failure::new(format!("locking {FILE}"), errno).into()),
        }
        let left = namespace::slots()?;
        if !left.is_empty() {
            tracing::info!(slots = left.len(), "machines go on: the host's packet filter rules stay");
            return Ok(());
        }
        rules::apply(&rules::no_host_rules()).map_err(|source| NetworkError::Rules { slot: None, source })
    }
}
