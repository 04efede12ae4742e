//! Where a guest's pages come from.

use std::io;

use crate::memory::{BLOCK, BlockAt, Generations};

/// Bytes of a page of memory, and of a block of a source.
pub const PAGE: u64 = BLOCK;

/// The memory of a guest at rest, in blocks of [`PAGE`] bytes. It does not change while it is served.
pub trait PageSource: Send + Sync {
    /// How many blocks the memory has.
    fn blocks(&self) -> u64;
    fn block(&self, index: u64) -> BlockAt;
    /// Fills `into` with `count` blocks from `first` on. An error if one cannot be had whole and right;
    /// then what is in `into` is not used.
    fn read(&self, first: u64, count: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Files are read, not mapped: one that turns out to be shorter, or whose disk fails, is then an error that
/// says so, and not the death of the server by a signal.
impl PageSource for Generations {
    fn blocks(&self) -> u64 {
        Self::blocks(self)
    }

    fn block(&self, index: u64) -> BlockAt {
        Self::block(self, index)
    }

    fn read(&self, first: u64, count: u64, into: &mut [u8]) -> io::Result<()> {
        Self::read(self, first, count, into).map_err(io::Error::other)
    }
}
