//! A guest's memory in generations: each pause writes only what changed since the last.
//!
//! ```text
//! <directory>/memory.header     which generation has which block; the one file that says what counts
//!             memory.<number>   a data file: the blocks that were written in one generation, packed
//! ```
//! A block is one page, [`BLOCK`] bytes. Data files are immutable, so a later snapshot carries earlier ones over by
//! hard link. A data file that the header does not name is left over from a crash and means nothing. A block
//! that is zero is mapped to nothing.
//!
//! The header, all numbers little-endian:
//! ```text
//!  0   8  magic `WRENNMEM`
//!  8   4  format version, 1
//! 12   4  block size in bytes, 4096
//! 16   8  memory size in bytes, a multiple of the block size
//! 24   4  G: generations, 64 at most
//! 28   4  R: bytes that the runs take
//! 32      G times 48 bytes, the oldest generation first:
//!           0   8  number: the data file is `memory.<number>`
//!           8   8  size of the data file in bytes, a multiple of the block size
//!          16  32  digest of the data file, or zeros where it is not known
//!         R bytes of runs, in order of the memory, which together are all of it. Each is two or three numbers:
//!           how many blocks it has, at least 1
//!           0 if they are zero, otherwise 1 + which of the generations above
//!           if they are not zero: how many blocks of the data file lie between the last run of this generation, or
//!           the start of the file, and this run. So a data file's blocks come in the order of the memory.
//!        32  SHA-256 of everything before it
//! ```
//! The numbers of a run have 7 bits in each byte, the lowest first; the highest bit of each but the last byte is
//! set (LEB128).
//!
//! The digest of a data file is SHA-256 over each of its blocks that is not zero, in order: the number of the block
//! in the file (8 bytes) and its content. So a flat image with holes can serve as a data file too, and
//! has the same digest wherever its holes are.
//!
//! At [`MERGE_AT`] generations [`merge`] makes one of them:
//! ```text
//!  write memory.<new> ─▶ sync it ─▶ write memory.header.partial ─▶ sync it ─▶ rename to memory.header ─▶ sync ─▶ remove old
//!  └───────────── until here the old header counts ──────────────────────┘ └──── from here on the new one ────┘
//! ```

mod blocks;
mod clone;
mod digest;
mod generations;
mod header;
mod map;
mod merge;
mod writer;

use std::path::{Path, PathBuf};

pub(crate) use self::{
    blocks::runs,
    digest::{DataDigest, whole_blocks},
};
pub use self::{
    generations::Generations,
    header::{Generation, Header, HeaderError},
    map::{BlockAt, MemoryMap, Run},
    merge::{Merged, merge},
    writer::{GenerationWriter, Written},
};
use crate::failure::Failure;

/// Size of a block in bytes: a page of the guest.
pub const BLOCK: u64 = 4096;
/// So many generations are merged into one.
pub const MERGE_AT: usize = 8;
/// With so many, merging does not wait for a good moment any more.
pub(crate) const MERGE_AT_ONCE: usize = 24;
/// More is not read, nor written.
pub(crate) const MOST_GENERATIONS: usize = 64;

/// Content is read and written by so much at a time.
const CHUNK: u64 = 1 << 20;
const HEADER: &str = "memory.header";
const DATA: &str = "memory.";

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("the header {path}")]
    Header {
        path: PathBuf,
        #[source]
        source: HeaderError,
    },
    #[error("the memory file {path} is damaged: {what}")]
    Data { path: PathBuf, what: String },
    #[error(
        "{count} blocks from {first} on, into {buffer} bytes, of a memory of {blocks} blocks of {BLOCK} bytes"
    )]
    Range { first: u64, count: u64, buffer: usize, blocks: u64 },
    #[error(
        "{length} changed bytes at {offset}: changes come as whole blocks, each behind the last (which \
         ended at {end}), within the memory's {bytes} bytes"
    )]
    Change { offset: u64, length: usize, end: u64, bytes: u64 },
    #[error("the memory is in {0} generations already: they must be merged first")]
    TooMany(usize),
    #[error(transparent)]
    Io(#[from] Failure),
}

pub(crate) fn header_path(directory: &Path) -> PathBuf {
    directory.join(HEADER)
}

fn data_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{DATA}{number}"))
}
