//! Memory files: made from the file a machine started with and what it changed since.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use nix::fcntl::{FallocateFlags, fallocate};

use super::mapping::{Mapping, PAGE};
use crate::{
    disk::{clone_or_copy, data_ranges},
    driver::DriverError,
    failure::{Doing as _, Failure},
};

/// Pages are copied by so much at a time.
const CHUNK: u64 = 1 << 20;
/// A VMM reads it through a descriptor it was given; nobody else gets into its directory.
const MODE: u32 = 0o644;

/// Makes `to` hold what a private mapping of `base` shows before anything is changed in it.
pub fn clone_base(base: &Path, to: &Path) -> Result<(), DriverError> {
    Ok(clone_or_copy(base, to)?)
}

/// Writes the pages that `mapping`, in a process whose vCPUs are stopped, has changed to `to`, which holds its base or
/// what was saved of it before. Answers how many bytes those are.
pub fn save_changed(mapping: &Mapping, to: &Path) -> Result<u64, DriverError> {
    let image = open(to)?;
    let memory = mapping.memory()?;
    let mut writer = PageWriter { image: &image, data: image_data(&image).doing(|| listing(to))? };
    let mut buffer = vec![0; CHUNK as usize];
    let mut written = 0;
    for changed in mapping.changed()? {
        let mut done = 0;
        while done < changed.length {
            let length = (changed.length - done).min(CHUNK);
            let pages = &mut buffer[..length as usize];
            memory
                .read_exact_at(pages, changed.address + done)
                .and_then(|()| writer.write(pages, changed.offset + done))
                .doing(|| format!("copying changed pages to {}", to.display()))?;
            done += length;
        }
        written += changed.length;
    }
    Ok(written)
}

/// Writes what the file `memory`, which a machine whose vCPUs are stopped shares, holds to `to`. Pages that
/// are zero again take no room.
pub fn save_whole(memory: &Path, to: &Path) -> Result<u64, DriverError> {
    clone_or_copy(memory, to)?;
    let image = open(to)?;
    let ranges = image_data(&image).doing(|| listing(to))?;
    let mut buffer = vec![0; CHUNK as usize];
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
            position += length;
        }
    }
    Ok(kept)
}

fn listing(path: &Path) -> String {
    format!("finding the data in {}", path.display())
}

fn open(path: &Path) -> Result<File, Failure> {
    let doing = || format!("opening {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    file.set_permissions(std::fs::Permissions::from_mode(MODE)).doing(doing)?;
    Ok(file)
}

fn image_data(image: &File) -> io::Result<Vec<(u64, u64)>> {
    let size = image.metadata()?.size();
    data_ranges(image, size).collect()
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

/// Stretches of pages that are all zero, or all not, as (zero, start, length).
fn runs(pages: &[u8]) -> impl Iterator<Item = (bool, usize, usize)> + '_ {
    let mut position = 0;
    std::iter::from_fn(move || {
        let mut rest = pages[position..].chunks(PAGE as usize).map(|page| (is_zero(page), page.len()));
        let (zero, mut length) = rest.next()?;
        length += rest.take_while(|(also, _)| *also == zero).map(|(_, length)| length).sum::<usize>();
        let start = position;
        position += length;
        Some((zero, start, length))
    })
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; PAGE as usize]
    }

    #[test]
    fn runs_cover_everything_once() {
        let pages = [page(0), page(1), page(2), page(0), page(0)].concat();
        let page = PAGE as usize;
        let found: Vec<_> = runs(&pages).collect();
        assert_eq!(found, [(true, 0, page), (false, page, 2 * page), (true, 3 * page, 2 * page)]);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn zeros_take_no_room_wherever_they_come_from() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = file.as_file();
        image.set_len(64 * PAGE).unwrap();
        image.write_all_at(&[page(1), page(2), page(3)].concat(), 0).unwrap();
        let mut writer = PageWriter { image, data: image_data(image).unwrap() };
        writer.write(&[page(4), page(0), page(5)].concat(), 0).unwrap();
        writer.write(&[page(0), page(6)].concat(), 10 * PAGE).unwrap();

        let mut expected = vec![page(0); 64];
        for (at, byte) in [(0, 4), (2, 5), (11, 6)] {
            expected[at] = page(byte);
        }
        assert!(std::fs::read(file.path()).unwrap() == expected.concat());
        let room = |path: &Path| {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            file.metadata().unwrap().blocks() * 512
        };
        assert_eq!(room(file.path()), 3 * PAGE);

        let copy = tempfile::NamedTempFile::new().unwrap();
        image.write_all_at(&page(0), 30 * PAGE).unwrap();
        assert_eq!(save_whole(file.path(), copy.path()).unwrap(), 3 * PAGE);
        assert!(std::fs::read(copy.path()).unwrap() == expected.concat());
        assert_eq!(room(copy.path()), 3 * PAGE);
    }
}
