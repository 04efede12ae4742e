//! Memory in files: made from what a machine started with and what it changed since.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use nix::fcntl::{FallocateFlags, fallocate};

use super::DriverError;
use crate::{
    disk::{clone_or_copy, try_clone},
    failure::{Doing as _, Failure},
    memory::{BLOCK, DataDigest, GenerationWriter, Generations, runs, whole_blocks},
    paths::hex,
    snapshot::{MemoryLayout, SnapshotFiles},
};

/// Pages are copied by so much at a time.
pub const CHUNK: u64 = 1 << 20;
/// A VMM reads it through a descriptor it was given; nobody else gets into its directory.
const MODE: u32 = 0o644;

/// The pages of a guest's memory, whose vCPUs are stopped, that are no longer what the machine was started with.
pub trait ChangedPages {
    /// Reads them, in order, and hands them over with their offset in the guest's memory. Answers how many bytes they
    /// are.
    fn each(&self, take: &mut TakePages<'_>) -> Result<u64, DriverError>;
}

/// Gets whole pages, which lie one behind the other, and where the first of them is in the guest's memory.
pub type TakePages<'a> = dyn FnMut(&[u8], u64) -> Result<(), DriverError> + 'a;

/// What was saved of a memory.
#[derive(Debug)]
pub struct SavedMemory {
    pub written_bytes: u64,
    pub layout: MemoryLayout,
}

/// Writes a memory into a snapshot: the file `base`, but for what has changed. Where files share blocks that is a
/// clone of the base with the changed pages in it; elsewhere the base is linked and the changed pages are a generation
/// of their own, so that nothing is copied.
pub fn save_private(
    changed: &dyn ChangedPages,
    base: &Path,
    into: &SnapshotFiles,
) -> Result<SavedMemory, DriverError> {
    if try_clone(base, &into.memory)? {
        return save_into_clone(changed, base, into);
    }
    let doing = || format!("looking at {}", base.display());
    let owner = fs::metadata(base).doing(doing)?.uid();
    if owner != 0 {
        // The VMM could write to it: only a copy is certain not to change any more.
        clone_or_copy(base, &into.memory)?;
        return save_into_clone(changed, base, into);
    }
    save_generation(changed, &Generations::of_flat(base, None)?, into)
}

/// The same for a machine whose memory was itself made from generations.
pub fn save_generation(
    changed: &dyn ChangedPages,
    base: &Generations,
    into: &SnapshotFiles,
) -> Result<SavedMemory, DriverError> {
    let mut writer = GenerationWriter::after(base, &into.directory);
    changed.each(&mut |pages, offset| Ok(writer.write(offset, pages)?))?;
    let written = writer.finish()?;
    Ok(SavedMemory { written_bytes: written.data_bytes, layout: (&written).into() })
}

/// The same into a clone of the base that was made before the vCPUs were stopped.
pub fn save_into_clone(
    changed: &dyn ChangedPages,
    base: &Path,
    into: &SnapshotFiles,
) -> Result<SavedMemory, DriverError> {
    Ok(flat(save_changed(changed, &into.memory)?, base, None)?)
}

/// Writes the changed pages into `to`, which has the content of the base. Answers how many bytes those are.
fn save_changed(changed: &dyn ChangedPages, to: &Path) -> Result<u64, DriverError> {
    let image = open(to)?;
    let mut writer = PageWriter { image: &image, data: whole_blocks(&image).doing(|| listing(to))? };
    changed.each(&mut |pages, offset| {
        Ok(writer.write(pages, offset).doing(|| format!("copying changed pages to {}", to.display()))?)
    })
}

/// Writes what the file `memory`, which a machine whose vCPUs are stopped shares, holds into a snapshot. Pages that
/// are zero again take no room.
pub fn save_whole(memory: &Path, to: &Path) -> Result<SavedMemory, DriverError> {
    clone_or_copy(memory, to)?;
    let image = open(to)?;
    let ranges = whole_blocks(&image).doing(|| listing(to))?;
    let mut buffer = vec![0; CHUNK as usize];
    let mut digest = DataDigest::default();
    let mut kept = 0;
    for &(start, end) in &ranges {
        let mut position = start;
        while position < end {
            let length = (end - position).min(CHUNK);
            let pages = &mut buffer[..length as usize];
            kept += image
                .read_exact_at(pages, position)
                .and_then(|()| punch_zeros(&image, pages, position))
                .doing(|| format!("dropping zero pages of {}", to.display()))?;
            digest.add(position / BLOCK, pages);
            position += length;
        }
    }
    Ok(flat(kept, memory, Some(hex(&digest.finish())))?)
}

fn flat(written_bytes: u64, like: &Path, digest: Option<String>) -> Result<SavedMemory, Failure> {
    let bytes = fs::metadata(like).doing(|| format!("looking at {}", like.display()))?.size();
    Ok(SavedMemory { written_bytes, layout: MemoryLayout::Flat { bytes, digest } })
}

fn listing(path: &Path) -> String {
    format!("finding the data in {}", path.display())
}

fn open(path: &Path) -> Result<File, Failure> {
    let doing = || format!("opening {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    file.set_permissions(fs::Permissions::from_mode(MODE)).doing(doing)?;
    Ok(file)
}

/// Writes pages, but no zeros where there is a hole, and makes a hole of zeros where there was data.
struct PageWriter<'a> {
    image: &'a File,
    /// Of the base, in order.
    data: Vec<(u64, u64)>,
}

impl PageWriter<'_> {
    fn write(&mut self, pages: &[u8], offset: u64) -> io::Result<()> {
        for (zero, start, length) in runs(pages) {
            let position = offset + start as u64;
            if !zero {
                self.image.write_all_at(&pages[start..start + length], position)?;
            } else if self.has_data(position, position + length as u64) {
                punch(self.image, position, length as u64)?;
            }
        }
        Ok(())
    }

    fn has_data(&self, start: u64, end: u64) -> bool {
        let first_behind = self.data.partition_point(|&(_, data_end)| data_end <= start);
        self.data.get(first_behind).is_some_and(|&(data_start, _)| data_start < end)
    }
}

fn punch_zeros(image: &File, pages: &[u8], position: u64) -> io::Result<u64> {
    let mut kept = 0;
    for (zero, start, length) in runs(pages) {
        if zero {
            punch(image, position + start as u64, length as u64)?;
        } else {
            kept += length as u64;
        }
    }
    Ok(kept)
}

fn punch(image: &File, position: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(image.as_fd(), flags, position.cast_signed(), length.cast_signed())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; BLOCK as usize]
    }

    #[test]
    fn zeros_take_no_room_wherever_they_come_from() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = file.as_file();
        image.set_len(64 * BLOCK).unwrap();
        image.write_all_at(&[page(1), page(2), page(3)].concat(), 0).unwrap();
        let mut writer = PageWriter { image, data: whole_blocks(image).unwrap() };
        writer.write(&[page(4), page(0), page(5)].concat(), 0).unwrap();
        writer.write(&[page(0), page(6)].concat(), 10 * BLOCK).unwrap();

        let mut expected = vec![page(0); 64];
        for (at, byte) in [(0, 4), (2, 5), (11, 6)] {
            expected[at] = page(byte);
        }
        assert!(fs::read(file.path()).unwrap() == expected.concat());
        let room = |path: &Path| {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            file.metadata().unwrap().blocks() * 512
        };
        assert_eq!(room(file.path()), 3 * BLOCK);

        let copy = tempfile::NamedTempFile::new().unwrap();
        image.write_all_at(&page(0), 30 * BLOCK).unwrap();
        let saved = save_whole(file.path(), copy.path()).unwrap();
        assert_eq!(saved.written_bytes, 3 * BLOCK);
        let digest = Some(hex(&DataDigest::of(image).unwrap()));
        assert_eq!(saved.layout, MemoryLayout::Flat { bytes: 64 * BLOCK, digest });
        assert!(fs::read(copy.path()).unwrap() == expected.concat());
        assert_eq!(room(copy.path()), 3 * BLOCK);
    }
}
