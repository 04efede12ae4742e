//! Where a guest's pages come from.

use std::io;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

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
    /// These will be read soon: what is on a disk may be fetched meanwhile.
    fn expect(&self, _first: u64, _count: u64) {}
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

    fn expect(&self, first: u64, count: u64) {
        for (file, offset, length) in self.places(first, count) {
            // A hint: where it is not taken, reading takes longer.
            let _ =
                posix_fadvise(file, offset as i64, length as i64, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }
}
