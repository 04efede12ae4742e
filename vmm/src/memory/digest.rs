//! The digest of a data file, whatever its holes are.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use sha2::{Digest as _, Sha256};

use super::{BLOCK, CHUNK, runs};
use crate::disk::data_ranges;

/// SHA-256 over the number and the content of each block that is not zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataDigest(Sha256);

impl DataDigest {
    /// Whole blocks, the first of which is the file's block `first`. They come in the order of the file.
    pub fn add(&mut self, first: u64, content: &[u8]) {
        for (zero, start, length) in runs(content) {
            if !zero {
                self.add_data(first + start as u64 / BLOCK, &content[start..start + length]);
            }
        }
    }

    /// The same for blocks of which none is zero.
    pub fn add_data(&mut self, first: u64, content: &[u8]) {
        for (number, block) in (first..).zip(content.chunks(BLOCK as usize)) {
            self.0.update(number.to_le_bytes());
            self.0.update(block);
        }
    }

    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    pub fn of(file: &File) -> io::Result<[u8; 32]> {
        let mut digest = Self::default();
        let mut buffer = vec![0; CHUNK as usize];
        for range in whole_blocks(file)? {
            let (mut position, end) = range;
            while position < end {
                let length = (end - position).min(CHUNK);
                let content = &mut buffer[..length as usize];
                file.read_exact_at(content, position)?;
                digest.add(position / BLOCK, content);
                position += length;
            }
        }
        Ok(digest.finish())
    }
}

/// Where a file, whose size is a multiple of the block size, has data, as (start, end) in bytes, in order,
/// widened to whole blocks.
pub(crate) fn whole_blocks(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (start, end) in data_ranges(file, file.metadata()?.len())? {
        let (start, end) = (start / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
        match ranges.last_mut() {
            Some(last) if start <= last.1 => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_zeros_are_the_same() {
        let [sparse, full] = [0, 1].map(|_| tempfile::tempfile().unwrap());
        let block = [7; BLOCK as usize];
        sparse.set_len(100 * BLOCK).unwrap();
        full.write_all_at(&vec![0; 100 * BLOCK as usize], 0).unwrap();
        for file in [&sparse, &full] {
            file.write_all_at(&block, 50 * BLOCK).unwrap();
        }
        assert_eq!(DataDigest::of(&sparse).unwrap(), DataDigest::of(&full).unwrap());

        let mut expected = Sha256::new();
        expected.update(50u64.to_le_bytes());
        expected.update(block);
        assert_eq!(DataDigest::of(&full).unwrap(), <[u8; 32]>::from(expected.finalize()));
        full.write_all_at(&block, 51 * BLOCK).unwrap();
        assert_ne!(DataDigest::of(&sparse).unwrap(), DataDigest::of(&full).unwrap());
    }
}
