//! The file of a view's changes, as the kernel keeps it: drivers/md/dm-snap-persistent.c.
//!
//! ```text
//! chunk 0            magic, whether it is valid, version, sectors in a chunk; all zeros before its first use
//! chunk 1            index: 256 pairs of (chunk of the disk, chunk of this file), ended by zeros
//! chunks 2 … 257     what these pairs name
//! chunk 258          the next index, and so on
//! ```
//! Integers are little-endian. A chunk is 4 KiB, which is the guest's page and its file system's block: a block that
//! is written replaces a chunk whole, so that the base need not be read for the rest of it, and the file has what was
//! changed and a 256th of it more. Larger chunks would make for fewer pairs, and for copying what nobody changed, at
//! the write and again at every pause.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::failure::{Doing as _, Failure};

/// Of 512 bytes.
pub const CHUNK_SECTORS: u64 = 8;
pub const CHUNK: u64 = CHUNK_SECTORS * 512;
const CHUNK_BYTES: usize = CHUNK as usize;
pub const PAIR_BYTES: usize = 16;
/// Pairs in one index.
pub const PAIRS: u64 = CHUNK / PAIR_BYTES as u64;
/// "SnAp".
const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    #[error(transparent)]
    Io(#[from] Failure),
    /// The kernel could not write some of it, so that what it shows is of no moment.
    #[error("{0} is marked as not valid")]
    Invalid(PathBuf),
    #[error("{path} is no file of changes: {what}")]
    Damaged { path: PathBuf, what: &'static str },
}

/// How long the file of a disk must be for every chunk of the disk to be changed. It is sparse: it takes what is
/// changed.
pub fn file_bytes(disk_bytes: u64) -> u64 {
    let indexes = disk_bytes.div_ceil(CHUNK).div_ceil(PAIRS);
    // When an index is full the kernel empties the next one, before it is wanted.
    (1 + (indexes + 1) * (PAIRS + 1)) * CHUNK
}

/// What a file of changes begins with.
pub fn header() -> [u8; PAIR_BYTES] {
    let mut header = [0; PAIR_BYTES];
    for (word, value) in header.as_chunks_mut().0.iter_mut().zip([MAGIC, 1, VERSION, CHUNK_SECTORS as u32]) {
        *word = u32::to_le_bytes(value);
    }
    header
}

/// Puts changes into a copy of what they are changes of. Holes stay holes, and chunks that became zeros become holes.
pub fn apply(changes: &Path, to: &Path) -> Result<(), ChangesError> {
    let changes = Changes::open(changes)?;
    let doing = || format!("putting changes into {}", to.display());
    let target = OpenOptions::new().write(true).open(to).doing(doing)?;
    let disk_bytes = target.metadata().doing(doing)?.len();
    let mut chunk = vec![0; CHUNK_BYTES];
    changes.each(disk_bytes, |offset, at| {
        let length = (disk_bytes - offset).min(CHUNK);
        let content = &mut chunk[..length as usize];
        changes.read(content, at)?;
        if content.iter().all(|byte| *byte == 0) {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&target, hole, offset.cast_signed(), length.cast_signed()).doing(doing)
        } else {
            target.write_all_at(content, offset).doing(doing)
        }
    })
}

/// One file of changes, open.
pub struct Changes {
    file: File,
    bytes: u64,
    path: PathBuf,
    /// It was used.
    begun: bool,
}

impl Changes {
    pub fn open(path: &Path) -> Result<Self, ChangesError> {
        let doing = || format!("reading {}", path.display());
        let file = File::open(path).doing(doing)?;
        let bytes = file.metadata().doing(doing)?.len();
        let mut header = [0; 16];
        file.read_exact_at(&mut header, 0).doing(doing)?;
        let (words, _) = header.as_chunks::<4>();
        let [magic, valid, version, sectors] = [0, 1, 2, 3].map(|word| u32::from_le_bytes(words[word]));
        let damaged = |what| ChangesError::Damaged { path: path.to_owned(), what };
        match (magic, valid) {
            (0, _) => {}
            (MAGIC, 0) => return Err(ChangesError::Invalid(path.to_owned())),
            (MAGIC, _) if version != VERSION => return Err(damaged("its version is another one")),
            (MAGIC, _) if u64::from(sectors) != CHUNK_SECTORS => {
                return Err(damaged("its chunks have another size"));
            }
            (MAGIC, _) => {}
            _ => return Err(damaged("it does not begin with the magic number")),
        }
        Ok(Self { file, bytes, path: path.to_owned(), begun: magic == MAGIC })
    }

    /// Whether it changes nothing. One that was never used could not even be read by the kernel, which would write to it
    /// first.
    pub fn is_empty(&self) -> Result<bool, ChangesError> {
        let mut index = vec![0; CHUNK_BYTES];
        if self.begun {
            self.read_index(1, &mut index)?;
        }
        Ok(index[8..PAIR_BYTES].iter().all(|byte| *byte == 0))
    }

    /// Reads a chunk at a place that [`each`](Self::each) told.
    pub fn read(&self, chunk: &mut [u8], at: u64) -> Result<(), Failure> {
        self.file.read_exact_at(chunk, at).doing(|| format!("reading {}", self.path.display()))
    }

    /// Calls with the place in the disk and the place in the file, in bytes, of each chunk that was changed.
    pub fn each(
        &self,
        disk_bytes: u64,
        mut change: impl FnMut(u64, u64) -> Result<(), Failure>,
    ) -> Result<(), ChangesError> {
        if !self.begun {
            return Ok(());
        }
        let disk_chunks = disk_bytes.div_ceil(CHUNK);
        let mut index = vec![0; CHUNK_BYTES];
        let mut number = 1;
        loop {
            self.read_index(number, &mut index)?;
            for pair in index.as_chunks::<PAIR_BYTES>().0 {
                let (halves, _) = pair.as_chunks::<8>();
                let [of_disk, of_file] = [0, 1].map(|half| u64::from_le_bytes(halves[half]));
                if of_file == 0 {
                    return Ok(());
                }
                if of_disk >= disk_chunks {
                    return Err(self.damaged("it changes what is beyond the disk's end"));
                }
                if of_file >= self.bytes / CHUNK || of_file % (PAIRS + 1) == 1 {
                    return Err(self.damaged("it names a chunk that holds no content"));
                }
                change(of_disk * CHUNK, of_file * CHUNK)?;
            }
            number += PAIRS + 1;
        }
    }

    fn read_index(&self, number: u64, index: &mut [u8]) -> Result<(), ChangesError> {
        match self.file.read_exact_at(index, number * CHUNK) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("its last index has no end"))
            }
            read => Ok(read.doing(|| format!("reading {}", self.path.display()))?),
        }
    }

    fn damaged(&self, what: &'static str) -> ChangesError {
        ChangesError::Damaged { path: self.path.clone(), what }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _};

    use proptest::prelude::*;

    use super::*;
    use crate::disk::clone_or_copy;

    /// Writes as the kernel does: each change gets the next chunk that is no index.
    pub fn write(path: &Path, disk_bytes: u64, changes: &[(u64, Vec<u8>)]) {
        let file = File::create(path).unwrap();
        file.set_len(file_bytes(disk_bytes)).unwrap();
        let header = [MAGIC, 1, VERSION, CHUNK_SECTORS as u32].map(u32::to_le_bytes).concat();
        file.write_all_at(&header, 0).unwrap();
        for (number, (chunk, content)) in (0_u64..).zip(changes) {
            let (index, place) = (1 + number / PAIRS * (PAIRS + 1), number % PAIRS);
            let of_file = index + 1 + place;
            let pair = [*chunk, of_file].map(u64::to_le_bytes).concat();
            file.write_all_at(&pair, index * CHUNK + place * PAIR_BYTES as u64).unwrap();
            file.write_all_at(content, of_file * CHUNK).unwrap();
        }
    }

    fn flatten(base: &Path, changes: &Path, to: &Path) -> Result<(), ChangesError> {
        clone_or_copy(base, to)?;
        apply(changes, to)
    }

    fn damage(path: &Path, at: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_flat_disk_is_its_base_with_the_changes(
            chunks in 1_u64..700,
            cut in 0_u64..8,
            written in proptest::collection::btree_map(0_u64..700, 0_u8..3, 0..600),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let [base, changes, flat] = ["base", "changes", "flat"].map(|name| directory.path().join(name));
            let disk_bytes = chunks * CHUNK - cut * 512;
            let mut expected = vec![0; disk_bytes as usize];
            for (number, chunk) in expected.chunks_mut(CHUNK_BYTES).enumerate().step_by(3) {
                chunk.fill(number as u8);
            }
            fs::write(&base, &expected).unwrap();
            let written: Vec<_> = written
                .into_iter()
                .filter(|(chunk, _)| *chunk < chunks)
                .map(|(chunk, byte)| (chunk, vec![byte; CHUNK_BYTES]))
                .collect();
            write(&changes, disk_bytes, &written);
            for (chunk, content) in &written {
                let start = (chunk * CHUNK) as usize;
                let end = (start + CHUNK_BYTES).min(expected.len());
                expected[start..end].copy_from_slice(&content[..end - start]);
            }
            flatten(&base, &changes, &flat).unwrap();
            prop_assert!(fs::read(&flat).unwrap() == expected);
        }
    }

    #[test]
    fn holes_stay_and_zeros_become_holes() {
        let directory = tempfile::tempdir().unwrap();
        let [base, changes, flat] = ["base", "changes", "flat"].map(|name| directory.path().join(name));
        let disk_bytes = 64 << 20;
        let file = File::create(&base).unwrap();
        file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
        file.set_len(disk_bytes).unwrap();
        // Two chunks of new content far out, and all that the base has but its first chunk gone.
        let mut written: BTreeMap<u64, Vec<u8>> =
            (1..256).map(|chunk| (chunk, vec![0; CHUNK_BYTES])).collect();
        written.extend([(9_000, vec![1; CHUNK_BYTES]), (16_383, vec![2; CHUNK_BYTES])]);
        write(&changes, disk_bytes, &written.into_iter().collect::<Vec<_>>());
        flatten(&base, &changes, &flat).unwrap();
        let metadata = fs::metadata(&flat).unwrap();
        assert_eq!(metadata.len(), disk_bytes);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks", metadata.blocks());
        let content = fs::read(&flat).unwrap();
        assert!(content[..CHUNK_BYTES].iter().all(|byte| *byte == 7));
        assert!(content[CHUNK_BYTES..1 << 20].iter().all(|byte| *byte == 0));
        assert!(content[9_000 * CHUNK_BYTES..][..CHUNK_BYTES].iter().all(|byte| *byte == 1));
    }

    #[test]
    fn one_that_was_never_used_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [base, changes, flat] = ["base", "changes", "flat"].map(|name| directory.path().join(name));
        fs::write(&base, [5; 8192]).unwrap();
        File::create(&changes).unwrap().set_len(file_bytes(8192)).unwrap();
        flatten(&base, &changes, &flat).unwrap();
        assert_eq!(fs::read(&flat).unwrap(), [5; 8192]);
        assert!(Changes::open(&changes).unwrap().is_empty().unwrap());
        for (written, empty) in [(&[][..], true), (&[(0, vec![1; CHUNK_BYTES])][..], false)] {
            write(&changes, 8192, written);
            assert_eq!(Changes::open(&changes).unwrap().is_empty().unwrap(), empty);
        }
    }

    #[test]
    fn every_chunk_of_a_disk_can_be_changed() {
        // 256 pairs fill an index, and the one behind it is emptied at once.
        assert_eq!(file_bytes(CHUNK), (1 + 2 * 257) * CHUNK);
        assert_eq!(file_bytes(256 * CHUNK), (1 + 2 * 257) * CHUNK);
        assert_eq!(file_bytes(256 * CHUNK + 512), (1 + 3 * 257) * CHUNK);
        let gibibyte = file_bytes(1 << 30);
        assert!((1 << 30) + (4 << 20) < gibibyte && gibibyte < (1 << 30) + (6 << 20), "{gibibyte}");
    }

    #[test]
    fn what_the_kernel_did_not_write_is_refused() {
        type Damage<'a> = &'a dyn Fn(&Path);
        let pair = |of_disk: u64, of_file: u64| [of_disk, of_file].map(u64::to_le_bytes).concat();
        let damages: [(&str, Damage); 8] = [
            ("is marked as not valid", &|path| damage(path, 4, &[0; 4])),
            ("the magic number", &|path| damage(path, 0, b"ext4")),
            ("its version", &|path| damage(path, 8, &[2])),
            ("another size", &|path| damage(path, 12, &[16])),
            ("beyond the disk's end", &|path| damage(path, CHUNK, &pair(4, 2))),
            ("holds no content", &|path| damage(path, CHUNK, &pair(0, 258))),
            ("holds no content", &|path| damage(path, CHUNK, &pair(0, 1 << 40))),
            ("has no end", &|path| {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                (0..256).for_each(|place| {
                    file.write_all_at(&pair(0, 2), CHUNK + place * PAIR_BYTES as u64).unwrap();
                });
                file.set_len(100 * CHUNK).unwrap();
            }),
        ];
        let directory = tempfile::tempdir().unwrap();
        let [base, changes, flat] = ["base", "changes", "flat"].map(|name| directory.path().join(name));
        fs::write(&base, vec![5; 4 * CHUNK_BYTES]).unwrap();
        for (expected, damage) in damages {
            write(&changes, 4 * CHUNK, &[(0, vec![1; CHUNK_BYTES])]);
            damage(&changes);
            let error = flatten(&base, &changes, &flat).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_in_an_error_or_a_disk(
            bytes in proptest::collection::vec(any::<u8>(), 0..12_000),
            begun in any::<bool>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let [base, changes, flat] = ["base", "changes", "flat"].map(|name| directory.path().join(name));
            fs::write(&base, [5; 8192]).unwrap();
            write(&changes, 8192, &[]);
            damage(&changes, if begun { CHUNK } else { 0 }, &bytes);
            if flatten(&base, &changes, &flat).is_ok() {
                prop_assert_eq!(fs::metadata(&flat).unwrap().len(), 8192);
            }
        }
    }
}
