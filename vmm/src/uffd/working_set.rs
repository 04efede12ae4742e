//! The pages a restore needed, kept for the next one.
//!
//! It is a hint: it says which pages to read ahead, never what is in them, so one that is missing, old or
//! damaged costs time and nothing else.
//!
//! Nobody can tell whether a page that was prefetched would have been asked for, so a set that only took in what each
//! restore had would never lose a page. Therefore each restore leaves a part of its set to be asked for, another part
//! than the one before: what is asked for is in the next set again, and the rest of that part is not.
//!
//! All numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `WRENNWS2` |
//! | 8 | pages of [`PAGE`] bytes that the memory has |
//! | 8 | restores in a row that it was recorded over |
//! | 8 | number of stretches |
//! | 16 each | a stretch: its first page, its pages; in order, and apart |
//! | 32 | SHA-256 of all before |

use std::{fs::File, io::Read as _, ops::Range, path::Path};

use sha2::{Digest as _, Sha256};

use super::pages::CHUNK;
use crate::{
    failure::{Doing as _, Failure},
    paths::write_atomically,
};

const MAGIC: &[u8; 8] = b"WRENNWS2";
const HEADER: usize = 32;
const STRETCH: usize = 16;
const DIGEST: usize = 32;
/// After so many restores each place was once left to be asked for.
const PARTS: u64 = 8;

#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    #[error(transparent)]
    Io(#[from] Failure),
    #[error("the working set is damaged: {0}")]
    Damaged(&'static str),
    #[error("the working set is of a memory of {found} pages, not {expected}")]
    OtherMemory { found: u64, expected: u64 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// In order and apart.
    pub stretches: Vec<Range<u64>>,
    /// In a row, each of which began with what the one before recorded. The first had nothing to begin with.
    pub restores: u64,
}

impl WorkingSet {
    /// What the next restore is to have before it asks for it. All that a single restore recorded was asked for just now.
    pub fn to_prefetch(&self) -> impl Iterator<Item = Range<u64>> {
        let left_out = (self.restores > 1).then_some(self.restores % PARTS);
        let places = self.stretches.iter().cloned().flat_map(places);
        places.filter(move |place| left_out != Some(place.start / CHUNK % PARTS))
    }
}

/// Cuts a stretch where a chunk ends: a place that is left out costs a few faults, as each brings more of its chunk.
fn places(stretch: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let chunks = stretch.start / CHUNK..stretch.end.div_ceil(CHUNK);
    chunks.map(move |chunk| stretch.start.max(chunk * CHUNK)..stretch.end.min((chunk + 1) * CHUNK))
}

/// Of a memory of `pages` pages.
pub fn load(path: &Path, pages: u64) -> Result<WorkingSet, WorkingSetError> {
    let doing = || format!("reading the working set {}", path.display());
    // More stretches than this cannot be apart.
    let most = HEADER as u64 + (pages / 2 + 1) * STRETCH as u64 + DIGEST as u64;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)).doing(doing)?;
    decode(&bytes, pages)
}

/// Written aside, synced and renamed.
pub fn store(path: &Path, set: &WorkingSet, pages: u64) -> Result<(), Failure> {
    write_atomically(path, &encode(set, pages))
        .doing(|| format!("writing the working set {}", path.display()))
}

fn encode(set: &WorkingSet, pages: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for number in [pages, set.restores, set.stretches.len() as u64] {
        bytes.extend(number.to_le_bytes());
    }
    for stretch in &set.stretches {
        bytes.extend(stretch.start.to_le_bytes());
        bytes.extend((stretch.end - stretch.start).to_le_bytes());
    }
    bytes.extend(Sha256::digest(&bytes));
    bytes
}

fn decode(bytes: &[u8], expected: u64) -> Result<WorkingSet, WorkingSetError> {
    let (bytes, digest) = bytes.split_last_chunk::<DIGEST>().ok_or(WorkingSetError::Damaged("too short"))?;
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return Err(WorkingSetError::Damaged("it does not begin like one"));
    }
    if *Sha256::digest(bytes) != digest[..] {
        return Err(WorkingSetError::Damaged("its checksum is wrong"));
    }
    let numbers: Vec<u64> = bytes[8..].as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
    let (found, restores, count) = (numbers[0], numbers[1], numbers[2]);
    if found != expected {
        return Err(WorkingSetError::OtherMemory { found, expected });
    }
    if u64::try_from((bytes.len() - HEADER) / STRETCH) != Ok(count)
        || !(bytes.len() - HEADER).is_multiple_of(STRETCH)
    {
        return Err(WorkingSetError::Damaged("its length is wrong"));
    }
    let mut stretches: Vec<Range<u64>> = Vec::with_capacity(numbers.len() / 2);
    for stretch in numbers[3..].as_chunks::<2>().0 {
        let [start, length] = *stretch;
        let end = start.checked_add(length).filter(|&end| end > start && end <= expected);
        let end = end.ok_or(WorkingSetError::Damaged("a stretch is not in the memory"))?;
        if stretches.last().is_some_and(|last| last.end >= start) {
            return Err(WorkingSetError::Damaged("its stretches are not in order and apart"));
        }
        stretches.push(start..end);
    }
    Ok(WorkingSet { stretches, restores })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 10_000;

    fn sets() -> impl Strategy<Value = WorkingSet> {
        let steps = proptest::collection::vec((1..50_u64, 1..50_u64), 0..100);
        (steps, any::<u64>()).prop_map(|(steps, restores)| {
            let mut position = 0;
            let mut stretch = |(gap, length): (u64, u64)| {
                let start = position + gap;
                position = start + length;
                start..position
            };
            WorkingSet { stretches: steps.into_iter().map(&mut stretch).collect(), restores }
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
        let set = WorkingSet { stretches: vec![3..7, 9..10], restores: 4 };
        store(&path, &set, PAGES).unwrap();
        assert_eq!(load(&path, PAGES).unwrap(), set);
        let error = load(&path, PAGES + 1).unwrap_err();
        assert!(matches!(error, WorkingSetError::OtherMemory { found: PAGES, .. }), "{error}");
    }

    #[test]
    fn a_right_checksum_does_not_make_nonsense_a_working_set() {
        for numbers in [
            &[PAGES, 1, 1][..],
            &[PAGES, 1, 0, 5, 5],
            &[PAGES, 1, u64::MAX, 5, 5],
            &[PAGES, 1, 1, 5],
            &[PAGES, 1, 1, 5, 0],
            &[PAGES, 1, 1, PAGES, 1],
            &[PAGES, 1, 1, u64::MAX, 2],
            &[PAGES, 1, 2, 5, 5, 10, 5],
            &[PAGES, 1, 2, 50, 5, 10, 5],
        ] {
            let error = decode(&sealed(numbers), PAGES).unwrap_err();
            assert!(matches!(error, WorkingSetError::Damaged(_)), "{numbers:?}: {error}");
        }
        let set = WorkingSet { stretches: vec![5..11, 12..13], restores: 3 };
        assert_eq!(decode(&sealed(&[PAGES, 3, 2, 5, 6, 12, 1]), PAGES).unwrap(), set);
    }

    #[test]
    fn all_is_left_to_be_asked_for_in_its_turn_but_what_just_was() {
        let all = 100..PAGES - 100;
        let set = |restores| WorkingSet { stretches: vec![all.clone()], restores };
        let pages = |set: WorkingSet| set.to_prefetch().flatten().collect::<Vec<u64>>();
        assert_eq!(pages(set(1)), all.clone().collect::<Vec<_>>());
        let mut left_out: Vec<u64> = Vec::new();
        for restores in 2..2 + PARTS {
            let prefetched = pages(set(restores));
            assert!(prefetched.is_sorted() && prefetched.len() > all.clone().count() / 2);
            left_out.extend(all.clone().filter(|page| prefetched.binary_search(page).is_err()));
        }
        left_out.sort_unstable();
        assert_eq!(left_out, all.collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(set in sets()) {
            prop_assert_eq!(decode(&encode(&set, PAGES), PAGES).unwrap(), set);
        }

        #[test]
        fn no_damage_goes_unnoticed(set in sets(), at: prop::sample::Index, cut: bool) {
            let mut bytes = encode(&set, PAGES);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 0x10 }
            prop_assert!(decode(&bytes, PAGES).is_err());
        }
    }
}
