//! Writing one more generation.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    BLOCK, BlockAt, CHUNK, DataDigest, Generation, Generations, Header, MOST_GENERATIONS, MemoryError,
    MemoryMap, Run, data_path, header_path, runs,
};
use crate::failure::{Doing as _, Failure};

/// Writes what changed into a directory that is still being made, beside further names of the earlier
/// generations' files. Syncing is for who completes the directory.
#[derive(Debug)]
pub struct GenerationWriter {
    directory: PathBuf,
    base: Option<Generations>,
    blocks: u64,
    number: u64,
    changes: Vec<Run>,
    data: DataWriter,
}

/// What a generation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of the memory.
    pub memory_bytes: u64,
    /// Content that was written; what is zero is not.
    pub data_bytes: u64,
    pub header_bytes: u64,
    /// SHA-256 of the header, as in its last bytes.
    pub checksum: [u8; 32],
    /// How many the memory is in now.
    pub generations: usize,
}

impl GenerationWriter {
    /// The first generation of a memory of `bytes`, which is zero where nothing is written.
    pub fn first(directory: &Path, bytes: u64) -> Self {
        Self::new(None, bytes / BLOCK, 0, directory)
    }

    /// A generation after those of `base`, on the same file system.
    pub fn after(base: &Generations, directory: &Path) -> Self {
        Self::new(Some(base.clone()), base.blocks(), base.next_number(), directory)
    }

    fn new(base: Option<Generations>, blocks: u64, number: u64, directory: &Path) -> Self {
        let data = DataWriter::new(data_path(directory, number));
        Self { directory: directory.to_owned(), base, blocks, number, changes: Vec::new(), data }
    }

    /// What is in the memory at `offset` now: whole blocks, behind those of the last call.
    pub fn write(&mut self, offset: u64, content: &[u8]) -> Result<(), MemoryError> {
        let end = self.changes.last().map_or(0, Run::end) * BLOCK;
        let (length, bytes) = (content.len(), self.blocks * BLOCK);
        let aligned = offset.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK);
        let within = offset.checked_add(length as u64).is_some_and(|end| end <= bytes);
        if !aligned || !within || offset < end {
            return Err(MemoryError::Change { offset, length, end, bytes });
        }
        let generation = self.base.as_ref().map_or(0, Generations::count);
        for (zero, start, length) in runs(content) {
            let at = if zero {
                BlockAt::Zero
            } else {
                let offset = self.data.append(&content[start..start + length])?;
                BlockAt::Data { generation, offset }
            };
            let first = (offset + start as u64) / BLOCK;
            self.changes.push(Run { first, count: length as u64 / BLOCK, at });
        }
        Ok(())
    }

    /// Completes the directory: links the earlier generations of which something is still needed, and writes the header.
    pub fn finish(self) -> Result<Written, MemoryError> {
        let Self { directory, base, blocks, number, changes, data } = self;
        let old = base.as_ref().map(|base| base.map().clone()).unwrap_or_else(|| MemoryMap::zero(blocks));
        let mut map = old.overlay(&changes);
        let (data_bytes, digest) = data.finish()?;
        let needed: BTreeSet<usize> = map
            .runs()
            .filter_map(|run| match run.at {
                BlockAt::Zero => None,
                BlockAt::Data { generation, .. } => Some(generation),
            })
            .collect();
        if needed.len() > MOST_GENERATIONS {
            return Err(MemoryError::TooMany(needed.len() - 1));
        }
        let mut generations = Vec::new();
        for &index in &needed {
            match base.as_ref().filter(|base| index < base.count()) {
                Some(base) => {
                    base.link(index, &directory)?;
                    generations.push(base.header().generations[index].clone());
                }
                None => generations.push(Generation { number, bytes: data_bytes, digest: Some(digest) }),
            }
        }
        map.renumber(|old| needed.iter().position(|index| *index == old).unwrap_or(old));
        let count = generations.len();
        let bytes = Header { generations, map }.encode();
        let path = header_path(&directory);
        fs::write(&path, &bytes).doing(|| format!("writing {}", path.display()))?;
        let mut checksum = [0; 32];
        checksum.copy_from_slice(&bytes[bytes.len() - 32..]);
        let (memory_bytes, header_bytes) = (blocks * BLOCK, bytes.len() as u64);
        Ok(Written { memory_bytes, data_bytes, header_bytes, checksum, generations: count })
    }
}

/// A data file that grows at its end, in large pieces. There is no file before there is content.
#[derive(Debug)]
pub(super) struct DataWriter {
    path: PathBuf,
    file: Option<File>,
    /// What is in the file.
    written: u64,
    /// What of that is certainly on the disk.
    synced: u64,
    pending: Vec<u8>,
    digest: DataDigest,
}

impl DataWriter {
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, written: 0, synced: 0, pending: Vec::new(), digest: DataDigest::default() }
    }

    /// Whole blocks, none of them zero; answers where they are in the file.
    pub fn append(&mut self, content: &[u8]) -> Result<u64, Failure> {
        let offset = self.written + self.pending.len() as u64;
        self.digest.add_data(offset / BLOCK, content);
        self.pending.extend_from_slice(content);
        if self.pending.len() as u64 >= CHUNK {
            self.flush()?;
        }
        Ok(offset)
    }

    /// The same for content that `bring` knows a better way to bring to where it belongs in the file.
    pub fn append_by(
        &mut self,
        content: &[u8],
        bring: impl FnOnce(&File, u64) -> std::io::Result<bool>,
    ) -> Result<u64, Failure> {
        self.flush()?;
        let offset = self.written;
        let path = self.path.clone();
        if bring(self.open()?, offset).doing(|| format!("writing {}", path.display()))? {
            self.digest.add_data(offset / BLOCK, content);
            self.written += content.len() as u64;
            return Ok(offset);
        }
        self.append(content)
    }

    fn open(&mut self) -> Result<&File, Failure> {
        Ok(match self.file {
            Some(ref file) => file,
            None => {
                let doing = || format!("creating {}", self.path.display());
                let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).clone();
                self.file.insert(options.open(&self.path).doing(doing)?)
            }
        })
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (pending, written) = (std::mem::take(&mut self.pending), self.written);
        let path = self.path.clone();
        self.open()?.write_all_at(&pending, written).doing(|| format!("writing {}", path.display()))?;
        self.written += pending.len() as u64;
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    /// How much of the file may still be in memory only.
    pub fn unsynced(&self) -> u64 {
        self.written - self.synced
    }

    pub fn sync(&mut self) -> Result<(), Failure> {
        let path = self.path.clone();
        self.open()?.sync_data().doing(|| format!("syncing {}", path.display()))?;
        self.synced = self.written;
        Ok(())
    }

    /// Size and digest of the file; without content there is none.
    pub fn finish(mut self) -> Result<(u64, [u8; 32]), Failure> {
        self.flush()?;
        Ok((self.written, self.digest.finish()))
    }
}
