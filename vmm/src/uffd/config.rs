//! What a page server is told when it is started.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::memory::{Generations, MemoryError};

/// Passed to the process as one argument, in JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageServerConfig {
    /// Where the VMM connects: `mem_backend.backend_path` as seen from outside its jail. Made by the server,
    /// and removed as soon as the VMM has connected.
    pub socket: PathBuf,
    /// Where [`super::PageServerHandle`] connects. Made by the server, and removed when it ends by itself.
    pub control: PathBuf,
    pub memory: MemorySource,
    /// The working set an earlier restore of this memory recorded, read before root is given up. A file
    /// that is missing or damaged is as none.
    pub prefetch: Option<PathBuf>,
    /// Where to put this restore's working set, replacing a file that is there, which may be the one above. Its directory must be writable
    /// for `user`; those above it need not even be open to it.
    pub record: Option<PathBuf>,
    /// The user the VMM runs as: the socket becomes its, and the server becomes it once everything is open. None
    /// for tests, where both stay who they are.
    pub user: Option<u32>,
    /// How long to wait for the VMM to connect.
    pub accept_within: Duration,
    /// The restore counts as ready after this time at the latest, if nobody says so earlier.
    pub record_for: Duration,
    /// Threads that answer faults, 1 to [`MOST_WORKERS`]. More than the host's processors help when the
    /// memory is on a slow disk.
    pub workers: usize,
}

/// Most threads that answer faults.
pub const MOST_WORKERS: usize = 32;
/// Enough to keep a disk busy while others copy.
pub const DEFAULT_WORKERS: usize = 4;

/// Where the snapshot's memory is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MemorySource {
    /// One file, whose holes are zeros.
    Flat { file: PathBuf },
    /// The directory of a header and its data files.
    Generations { directory: PathBuf },
}

impl MemorySource {
    pub fn open(&self) -> Result<Generations, MemoryError> {
        match self {
            Self::Flat { file } => Generations::of_flat(file, None),
            Self::Generations { directory } => Generations::open(directory),
        }
    }
}
