//! Where a file has data.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::{
    errno::Errno,
    sys::statfs::{XFS_SUPER_MAGIC, fstatfs},
    unistd::{Whence, lseek},
};

/// Where the first `size` bytes of a file are not a hole, as (start, end) in bytes, in order. Nobody may be writing to it.
pub fn data_ranges(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    // XFS before Linux 6.9 passes over data in `SEEK_DATA`: what follows a block that was written in a file that
    // shares its blocks, as far as the space that was reserved there for further writes goes, and is not in memory
    // (mended by the kernel's commit "xfs: fix SEEK_HOLE/DATA for regions with active COW extents").
    if fstatfs(file)?.filesystem_type() == XFS_SUPER_MAGIC {
        return mapped(file, size);
    }
    sought(file, size)
}

/// By `lseek`.
fn sought(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let seek = |from: u64, whence| lseek(file.as_fd(), from.cast_signed(), whence).map(i64::cast_unsigned);
    let mut ranges = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match seek(position, Whence::SeekData) {
            Ok(start) if start < size => start,
            // Nothing but a hole to the end.
            Ok(_) | Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        position = seek(start, Whence::SeekHole)?.min(size);
        ranges.push((start, position));
    }
    Ok(ranges)
}

/// What is asked for at a time.
const EXTENTS: usize = 128;

/// `FS_IOC_FIEMAP` of `linux/fs.h`.
const MAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
/// `FIEMAP_FLAG_SYNC` of `linux/fiemap.h`: what is only in memory is given its place first.
const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;
/// `FIEMAP_EXTENT_UNWRITTEN`: space that is only reserved.
const UNWRITTEN: u32 = 0x800;

/// `struct fiemap`, with room for extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// By what the file system has allocated, and was written to.
fn mapped(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut position = 0;
    while position < size {
        let mut map = Map {
            start: position,
            length: size - position,
            flags: SYNC,
            mapped: 0,
            room: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the request reads and writes one such structure with room for as many extents as it says; it lives
        // through the call, and the file is open.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), MAP, &raw mut map) })?;
        let found = &map.extents[..EXTENTS.min(map.mapped as usize)];
        for extent in found.iter().filter(|extent| extent.flags & UNWRITTEN == 0) {
            let (start, end) = (extent.logical.max(position), (extent.logical + extent.length).min(size));
            match ranges.last_mut() {
                _ if start >= end => {}
                Some(last) if last.1 == start => last.1 = end,
                _ => ranges.push((start, end)),
            }
        }
        position = match found.last() {
            Some(last) if last.flags & LAST == 0 => last.logical + last.length,
            _ => size,
        };
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt as _, path::Path};

    use super::*;

    const BLOCK: u64 = 4096;

    /// With data in every second block, and a hole at both ends.
    fn striped(directory: &Path, blocks: u64) -> (File, Vec<(u64, u64)>) {
        let file = tempfile::tempfile_in(directory).unwrap();
        let mut expected = Vec::new();
        for block in (1..blocks - 1).step_by(2) {
            file.write_all_at(&[7; BLOCK as usize], block * BLOCK).unwrap();
            expected.push((block * BLOCK, (block + 1) * BLOCK));
        }
        file.set_len(blocks * BLOCK).unwrap();
        (file, expected)
    }

    #[test]
    fn both_ways_find_the_same() {
        // On a disk, whose file system has blocks of this size; more extents than are asked for at a time.
        let (file, expected) = striped(Path::new("/var/tmp"), 3 * EXTENTS as u64);
        let size = file.metadata().unwrap().len();
        assert_eq!(sought(&file, size).unwrap(), expected);
        assert_eq!(mapped(&file, size).unwrap(), expected);
        let half = expected[10].0 + BLOCK / 2;
        for ranges in [sought(&file, half).unwrap(), mapped(&file, half).unwrap()] {
            assert_eq!(ranges.last(), Some(&(expected[10].0, half)));
        }
    }

    #[test]
    fn reserved_space_is_no_data() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 100 * BLOCK as i64).unwrap();
        file.write_all_at(&[7; BLOCK as usize], 50 * BLOCK).unwrap();
        assert_eq!(mapped(&file, 100 * BLOCK).unwrap(), [(50 * BLOCK, 51 * BLOCK)]);
        assert_eq!(sought(&file, 100 * BLOCK).unwrap(), [(50 * BLOCK, 51 * BLOCK)]);
    }

    #[test]
    fn a_file_without_data_has_none() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        assert_eq!(data_ranges(&file, 0).unwrap(), []);
        file.set_len(1 << 30).unwrap();
        assert_eq!(sought(&file, 1 << 30).unwrap(), []);
        assert_eq!(mapped(&file, 1 << 30).unwrap(), []);
    }
}
