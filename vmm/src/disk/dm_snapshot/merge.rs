//! Many files of changes into one.
//!
//! Each life of a capsule begins a file of its own, so that a pause need not copy what was changed before it. Merged are
//! those of the latest lives, up to one that is larger than all of them together: what was changed once and is left alone
//! since is not copied because of what changes again and again.

use std::{
    fs::File,
    mem,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::changes::{CHUNK, Changes, ChangesError, PAIR_BYTES, PAIRS, file_bytes, header};
use crate::{
    disk::{reflink::begin_to_write_out, sparse},
    failure::{Doing as _, Failure},
};

/// So many are merged, those at least that are the cheapest: each costs a further device at every attach, and time at
/// every read of what was not changed.
pub const MERGE_AT: usize = 8;
/// Fewer are merged where they take more than so many whole disks: what is written over again and again is not kept as often.
const DISKS_KEPT: u64 = 2;

/// Which files are to be merged, by the sizes of all from the lowest on and that of the disk: those from here on, if there
/// are any.
pub fn merged_from(sizes: &[u64], disk_bytes: u64) -> usize {
    let heavy = sizes.len() > 1 && sizes.iter().sum::<u64>() > DISKS_KEPT * disk_bytes;
    if sizes.len() < MERGE_AT && !heavy {
        return sizes.len();
    }
    let mut from = sizes.len() - 2;
    let mut merged: u64 = sizes[from..].iter().sum();
    while from > 0 && sizes[from - 1] <= merged {
        from -= 1;
        merged += sizes[from];
    }
    from
}

/// Makes `to` one file of what all of these change, of which a later one counts before an earlier.
pub fn merge(files: &[&Path], disk_bytes: u64, to: &Path) -> Result<(), ChangesError> {
    let mut merged = Merged::create(to, disk_bytes)?;
    let mut changed = vec![false; disk_bytes.div_ceil(CHUNK) as usize];
    for file in files.iter().rev() {
        let changes = Changes::open(file)?;
        changes.each(disk_bytes, |offset, at| {
            let chunk = offset / CHUNK;
            if mem::replace(&mut changed[chunk as usize], true) {
                return Ok(());
            }
            merged.append(chunk, |content| changes.read(content, at))
        })?;
    }
    Ok(merged.finish()?)
}

/// A file of changes that is being written as the kernel would: each index with what it names behind it.
struct Merged {
    file: File,
    path: PathBuf,
    /// Which chunk of the file the index will be.
    index: u64,
    /// The index, and what it names so far.
    part: Vec<u8>,
}

impl Merged {
    fn create(path: &Path, disk_bytes: u64) -> Result<Self, Failure> {
        let doing = || format!("beginning {}", path.display());
        let file = sparse::create(path)?;
        file.set_len(file_bytes(disk_bytes)).doing(doing)?;
        file.write_all_at(&header(), 0).doing(doing)?;
        Ok(Self { file, path: path.to_owned(), index: 1, part: vec![0; CHUNK as usize] })
    }

    fn append(
        &mut self,
        of_disk: u64,
        read: impl FnOnce(&mut [u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let start = self.part.len();
        self.part.resize(start + CHUNK as usize, 0);
        read(&mut self.part[start..])?;
        let named = start as u64 / CHUNK;
        let pair = [of_disk, self.index + named].map(u64::to_le_bytes);
        let place = (named as usize - 1) * PAIR_BYTES;
        self.part[place..place + PAIR_BYTES].copy_from_slice(pair.as_flattened());
        if named == PAIRS { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), Failure> {
        let written = self.file.write_all_at(&self.part, self.index * CHUNK);
        written.doing(|| format!("writing {}", self.path.display()))?;
        self.index += PAIRS + 1;
        self.part.truncate(CHUNK as usize);
        self.part.fill(0);
        Ok(())
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.write()?;
        // So that the next pause, which makes it durable, finds that done.
        begin_to_write_out(&self.file).doing(|| format!("writing out {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::{
        super::changes::{apply, tests::write},
        *,
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_merged_file_changes_what_all_did(
            lives in proptest::collection::vec(
                proptest::collection::btree_map(0_u64..700, any::<u8>(), 0..600),
                2..6,
            ),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let disk_bytes = 700 * CHUNK - 512;
            let flat = |name: &str| {
                let path = directory.path().join(name);
                fs::write(&path, vec![9; disk_bytes as usize]).unwrap();
                path
            };
            let (one_by_one, at_once) = (flat("one by one"), flat("at once"));
            let mut files = Vec::new();
            for (number, life) in lives.iter().enumerate() {
                let path = directory.path().join(number.to_string());
                let changes = life.iter().map(|(chunk, byte)| (*chunk, vec![*byte; CHUNK as usize]));
                write(&path, disk_bytes, &changes.collect::<Vec<_>>());
                apply(&path, &one_by_one).unwrap();
                files.push(path);
            }
            let merged = directory.path().join("merged");
            merge(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>(), disk_bytes, &merged).unwrap();
            apply(&merged, &at_once).unwrap();
            prop_assert!(fs::read(&at_once).unwrap() == fs::read(&one_by_one).unwrap());
            prop_assert_eq!(fs::metadata(&merged).unwrap().len(), file_bytes(disk_bytes));
        }
    }

    #[test]
    fn few_files_stay_as_they_are() {
        let merged_from = |sizes: &[u64]| merged_from(sizes, 1000);
        assert_eq!(merged_from(&[]), 0);
        assert_eq!(merged_from(&[1; MERGE_AT - 1]), MERGE_AT - 1);
        assert_eq!(merged_from(&[1; MERGE_AT]), 0);
        assert_eq!(merged_from(&[100, 9, 1, 1, 1, 1, 1, 1]), 2);
        assert_eq!(merged_from(&[128, 64, 32, 16, 8, 4, 2, 1]), 6, "at least two");
    }

    #[test]
    fn few_that_take_much_are_merged() {
        let merged_from = |sizes: &[u64]| merged_from(sizes, 1000);
        assert_eq!(merged_from(&[1010, 990]), 2, "as much as is kept");
        assert_eq!(merged_from(&[1010, 1010]), 0);
        assert_eq!(merged_from(&[1010, 600, 400]), 1);
        assert_eq!(merged_from(&[2500]), 1, "there is nothing to merge it with");
    }

    #[test]
    fn what_is_left_alone_is_hardly_ever_copied() {
        let (left_alone, each_life, lives) = (1_000_000, 1_000, 500);
        let (mut sizes, mut copied) = (vec![left_alone], 0);
        for life in 1..=lives {
            sizes.push(each_life);
            let merged: u64 = sizes.split_off(merged_from(&sizes, left_alone)).iter().sum();
            if merged > 0 {
                sizes.push(merged);
                copied += merged;
            }
            assert!(sizes.len() < MERGE_AT);
            assert_eq!(sizes.iter().sum::<u64>(), left_alone + life * each_life);
        }
        assert!(copied < 6 * lives * each_life, "{copied} bytes were copied");
    }
}
