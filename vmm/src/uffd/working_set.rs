//! The pages a restore needed, kept for the next one.
//!
//! It is a hint: it says which pages to read ahead, never what is in them, so one that is missing, old or
//! damaged costs time and nothing else. All numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `WRENNWS1` |
//! | 8 | pages of [`PAGE`] bytes that the memory has |
//! | 8 | number of stretches |
//! | 16 each | a stretch: its first page, its pages; in order, and apart |
//! | 32 | SHA-256 of all before |

use std::{fs::File, io::Read as _, ops::Range, path::Path};

use sha2::{Digest as _, Sha256};

use crate::{
    failure::{Doing as _, Failure},
    paths::write_atomically,
};

const MAGIC: &[u8; 8] = b"WRENNWS1";
const HEADER: usize = 24;
const STRETCH: usize = 16;
const DIGEST: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    #[error(transparent)]
    Io(#[from] Failure),
    #[error("the working set is damaged: {0}")]
    Damaged(&'static str),
    #[error("the working set is of a memory of {found} pages, not {expected}")]
    OtherMemory { found: u64, expected: u64 },
}

/// Of a memory of `pages` pages.
pub fn load(path: &Path, pages: u64) -> Result<Vec<Range<u64>>, WorkingSetError> {
    let doing = || format!("reading the working set {}", path.display());
    // More stretches than this cannot be apart.
    let most = HEADER as u64 + (pages / 2 + 1) * STRETCH as u64 + DIGEST as u64;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)).doing(doing)?;
    decode(&bytes, pages)
}

/// Written aside, synced and renamed. The stretches are in order and apart.
pub fn store(path: &Path, stretches: &[Range<u64>], pages: u64) -> Result<(), Failure> {
    write_atomically(path, &encode(stretches, pages))
        .doing(|| format!("writing the working set {}", path.display()))
}

fn encode(stretches: &[Range<u64>], pages: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(pages.to_le_bytes());
    bytes.extend((stretches.len() as u64).to_le_bytes());
    for stretch in stretches {
        bytes.extend(stretch.start.to_le_bytes());
        bytes.extend((stretch.end - stretch.start).to_le_bytes());
    }
    bytes.extend(Sha256::digest(&bytes));
    bytes
}

fn decode(bytes: &[u8], expected: u64) -> Result<Vec<Range<u64>>, WorkingSetError> {
    let (bytes, digest) = bytes.split_last_chunk::<DIGEST>().ok_or(WorkingSetError::Damaged("too short"))?;
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return Err(WorkingSetError::Damaged("it does not begin like one"));
    }
    if *Sha256::digest(bytes) != digest[..] {
        return Err(WorkingSetError::Damaged("its checksum is wrong"));
    }
    let numbers: Vec<u64> = bytes[8..].as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
    let (found, count) = (numbers[0], numbers[1]);
    if found != expected {
        return Err(WorkingSetError::OtherMemory { found, expected });
    }
    if u64::try_from((bytes.len() - HEADER) / STRETCH) != Ok(count)
        || !(bytes.len() - HEADER).is_multiple_of(STRETCH)
    {
        return Err(WorkingSetError::Damaged("its length is wrong"));
    }
    let mut stretches: Vec<Range<u64>> = Vec::with_capacity(numbers.len() / 2 - 1);
    for stretch in numbers[2..].as_chunks::<2>().0 {
        let [start, length] = *stretch;
        let end = start.checked_add(length).filter(|&end| end > start && end <= expected);
        let end = end.ok_or(WorkingSetError::Damaged("a stretch is not in the memory"))?;
        if stretches.last().is_some_and(|last| last.end >= start) {
            return Err(WorkingSetError::Damaged("its stretches are not in order and apart"));
        }
        stretches.push(start..end);
    }
    Ok(stretches)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 10_000;

    fn stretches() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((1..50_u64, 1..50_u64), 0..100).prop_map(|steps| {
            let mut position = 0;
            let mut stretch = |(gap, length): (u64, u64)| {
                let start = position + gap;
                position = start + length;
                start..position
            };
            steps.into_iter().map(&mut stretch).collect()
        })
    }

    /// What a file says whose checksum is right.
    fn sealed(numbers: &[u64]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(Sha256::digest(&bytes));
        bytes
    }

    #[test]
    fn the_file_of_another_memory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("working-set");
        assert!(matches!(load(&path, PAGES), Err(WorkingSetError::Io(_))));
        store(&path, &[3..7, 9..10], PAGES).unwrap();
        assert_eq!(load(&path, PAGES).unwrap(), [3..7, 9..10]);
        let error = load(&path, PAGES + 1).unwrap_err();
        assert!(matches!(error, WorkingSetError::OtherMemory { found: PAGES, .. }), "{error}");
    }

    #[test]
    fn a_right_checksum_does_not_make_nonsense_a_working_set() {
        for numbers in [
            &[PAGES, 1][..],
            &[PAGES, 0, 5, 5],
            &[PAGES, u64::MAX, 5, 5],
            &[PAGES, 1, 5],
            &[PAGES, 1, 5, 0],
            &[PAGES, 1, PAGES, 1],
            &[PAGES, 1, u64::MAX, 2],
            &[PAGES, 2, 5, 5, 10, 5],
            &[PAGES, 2, 50, 5, 10, 5],
        ] {
            let error = decode(&sealed(numbers), PAGES).unwrap_err();
            assert!(matches!(error, WorkingSetError::Damaged(_)), "{numbers:?}: {error}");
        }
        assert_eq!(decode(&sealed(&[PAGES, 2, 5, 6, 12, 1]), PAGES).unwrap(), [5..11, 12..13]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(stretches in stretches()) {
            prop_assert_eq!(decode(&encode(&stretches, PAGES), PAGES).unwrap(), stretches);
        }

        #[test]
        fn no_damage_goes_unnoticed(stretches in stretches(), at: prop::sample::Index, cut: bool) {
            let mut bytes = encode(&stretches, PAGES);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 0x10 }
            prop_assert!(decode(&bytes, PAGES).is_err());
        }
    }
}
