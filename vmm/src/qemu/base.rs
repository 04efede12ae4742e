//! What a restored machine maps as its memory. Whatever that is, its content stays in the machine's home under names
//! of its own, so that the snapshot may be removed while the machine runs.

use std::{
    fs::OpenOptions,
    os::{fd::OwnedFd, unix::fs::fchown},
    path::Path,
};

use super::{
    MemoryRecord,
    launch::{Launcher, open_read},
    sealed::SealedMemories,
};
use crate::{
    disk::try_clone,
    driver::{
        DriverError, MemorySharing,
        base::{link_flat, link_generations, open_up},
    },
    failure::{Doing as _, Failure},
    paths::CapsulePaths,
    snapshot::{MemoryLayout, Snapshot},
};

/// The one place that decides what a QEMU may map.
pub struct Base<'a> {
    pub launcher: &'a Launcher,
    pub home: &'a CapsulePaths,
    pub sharing: MemorySharing,
    pub sealed: &'a SealedMemories,
    /// The user that the machine runs as.
    pub uid: u32,
}

impl Base<'_> {
    /// Opens what is to be mapped, and says how it is kept in the home.
    pub fn prepare(&self, snapshot: &Snapshot) -> Result<(OwnedFd, MemoryRecord), DriverError> {
        match &snapshot.manifest().memory {
            MemoryLayout::Flat { .. } => self.flat(snapshot),
            MemoryLayout::Generations { .. } => self.generations(snapshot),
        }
    }

    fn flat(&self, snapshot: &Snapshot) -> Result<(OwnedFd, MemoryRecord), DriverError> {
        let (memory, own) = (&snapshot.memory(), &self.home.memory());
        let link = || link_flat(snapshot, self.home);
        let file = if self.launcher.version.maps_read_only_files() {
            link()?;
            open_read(own)?.into()
        } else if self.sharing == MemorySharing::Own {
            link()?;
            self.give(own)?
        } else if let Some(copy) = self.sealed.get(snapshot)? {
            link()?;
            copy.try_clone().doing(|| "sharing memory")?
        } else if try_clone(memory, own)? {
            // Only a copy of its own may ever be this machine's to write to.
            self.give(own)?
        } else {
            return self.generations(snapshot);
        };
        let inode = inode(&file)?;
        Ok((file, MemoryRecord::Private { inode }))
    }

    /// QEMU maps one file: the generations are put together in a flat one.
    fn generations(&self, snapshot: &Snapshot) -> Result<(OwnedFd, MemoryRecord), DriverError> {
        let own = &self.home.memory();
        let base = link_generations(snapshot, self.home)?;
        let shared = match self.sharing {
            MemorySharing::Shared => self.sealed.get(snapshot)?,
            MemorySharing::Own => None,
        };
        let file = if let Some(copy) = shared {
            copy.try_clone().doing(|| "sharing memory")?
        } else {
            base.flatten(own)?;
            if self.launcher.version.maps_read_only_files() {
                open_up(own)?;
                open_read(own)?.into()
            } else {
                self.give(own)?
            }
        };
        let inode = inode(&file)?;
        Ok((file, MemoryRecord::Generations { inode }))
    }

    /// Opens a file of the machine's own for writing, which QEMU before 8.2 insists on.
    fn give(&self, own: &Path) -> Result<OwnedFd, Failure> {
        let file = OpenOptions::new().read(true).write(true).open(own);
        let file = file.doing(|| format!("opening {}", own.display()))?;
        fchown(&file, Some(self.uid), Some(self.uid)).doing(|| format!("giving {} away", own.display()))?;
        Ok(file.into())
    }
}

fn inode(file: &OwnedFd) -> Result<u64, Failure> {
    Ok(nix::sys::stat::fstat(file).doing(|| "looking at the memory")?.st_ino)
}
