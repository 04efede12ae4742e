//! Gives the memory of a snapshot names in a machine's home, so that the snapshot may be removed while the machine runs.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::atomic::AtomicBool};

use super::DriverError;
use crate::{
    failure::{Doing as _, Failure},
    memory::{Generations, MERGE_AT_ONCE, merge},
    paths::CapsulePaths,
    snapshot::Snapshot,
};

/// A flat memory.
pub fn link_flat(snapshot: &Snapshot, home: &CapsulePaths) -> Result<(), Failure> {
    let (memory, own) = (snapshot.memory(), home.memory());
    fs::hard_link(&memory, &own).doing(|| format!("linking {} to {}", memory.display(), own.display()))
}

/// A memory however it lies, as generations; not too many of them.
pub fn link_generations(snapshot: &Snapshot, home: &CapsulePaths) -> Result<Generations, DriverError> {
    let directory = home.generations();
    let base = snapshot.open_memory()?.link_into(&directory)?;
    if base.count() < MERGE_AT_ONCE {
        return Ok(base);
    }
    // No life was long enough for it. Many generations are slow to read, not wrong.
    if let Err(error) = merge(&directory, &AtomicBool::new(false)) {
        tracing::warn!(error = &error as &dyn std::error::Error, "generations stay unmerged");
    }
    Ok(Generations::open(&directory)?)
}

/// Lets every user read a file, by its permissions alone; nobody else gets into its directory.
pub fn open_up(path: &Path) -> Result<(), Failure> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .doing(|| format!("opening up {}", path.display()))
}
