//! Where a guest's pages come from.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use crate::{
    disk,
    failure::{Doing as _, Failure},
};

/// Bytes of a page of memory, and of a block of a source.
pub const PAGE: u64 = 4096;

/// Where the content of one block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockAt {
    /// Nowhere: it is zeros.
    Zero,
    /// `offset` in bytes, in the data of one generation. Their order is that of a sequential read.
    Data { generation: usize, offset: u64 },
}

/// The memory of a guest at rest, in blocks of [`PAGE`] bytes. It does not change while it is served.
pub trait PageSource: Send + Sync {
    /// How many blocks the memory has.
    fn blocks(&self) -> u64;
    fn block(&self, index: u64) -> BlockAt;
    /// Fills `into` with `count` blocks from `first` on. An error if one cannot be had whole and right;
    /// then what is in `into` is not used.
    fn read(&self, first: u64, count: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Memory as one file, whose holes are known to be zeros.
///
/// It is read, not mapped: a file that turns out to be shorter, or whose disk fails, is then an error that
/// says so, and not the death of the server by a signal.
pub struct FlatFile {
    file: File,
    blocks: u64,
    /// What is not a hole, in blocks; in order and apart.
    data: Vec<Range<u64>>,
}

impl FlatFile {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let doing = || format!("opening the memory file {}", path.display());
        let file = File::open(path).doing(doing)?;
        let bytes = file.metadata().doing(doing)?.size();
        if bytes == 0 || !bytes.is_multiple_of(PAGE) {
            let what = format!("its {bytes} bytes are not whole pages of {PAGE}");
            return Err(Failure::new(doing(), io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        let data = data_ranges(&file, bytes).doing(doing)?;
        Ok(Self { file, blocks: bytes / PAGE, data })
    }

    fn has_data(&self, index: u64) -> bool {
        let after = self.data.partition_point(|range| range.start <= index);
        after > 0 && index < self.data[after - 1].end
    }
}

impl PageSource for FlatFile {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn block(&self, index: u64) -> BlockAt {
        if self.has_data(index) {
            BlockAt::Data { generation: 0, offset: index * PAGE }
        } else {
            BlockAt::Zero
        }
    }

    fn read(&self, first: u64, _count: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, first * PAGE)
    }
}

/// Blocks that hold at least one byte that is not of a hole.
fn data_ranges(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for range in disk::data_ranges(file, bytes) {
        let (start, end) = range?;
        let blocks = start / PAGE..end.div_ceil(PAGE);
        match ranges.last_mut() {
            Some(last) if blocks.start <= last.end => last.end = blocks.end,
            _ => ranges.push(blocks),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeros_and_the_rest_is_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 * PAGE).unwrap();
        file.as_file().write_all_at(&[7; PAGE as usize], 16 * PAGE).unwrap();
        file.as_file().write_all_at(&[8; 2 * PAGE as usize], 63 * PAGE).unwrap();
        let source = FlatFile::open(file.path()).unwrap();
        assert_eq!(source.blocks(), 65);
        for index in 0..65 {
            let mut page = [1; PAGE as usize];
            source.read(index, 1, &mut page).unwrap();
            let expected = match index {
                16 => 7,
                63 | 64 => 8,
                _ => 0,
            };
            assert_eq!(page, [expected; PAGE as usize], "block {index}");
            if expected != 0 {
                assert_eq!(source.block(index), BlockAt::Data { generation: 0, offset: index * PAGE });
            }
        }
        assert_eq!(source.block(5), BlockAt::Zero);
    }

    #[test]
    fn a_file_that_is_no_memory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [0, PAGE + 1] {
            file.as_file().set_len(bytes).unwrap();
            let error = FlatFile::open(file.path()).err().unwrap();
            assert!(error.source.to_string().contains("not whole pages"), "{error}");
        }
        assert!(FlatFile::open(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[7; 8 * PAGE as usize], 0).unwrap();
        let source = FlatFile::open(file.path()).unwrap();
        file.as_file().set_len(PAGE).unwrap();
        assert!(source.read(4, 1, &mut [0; PAGE as usize]).is_err());
    }
}
