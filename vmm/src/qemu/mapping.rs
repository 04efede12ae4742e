//! The guest's memory as it lies in the VMM's address space, and which of its pages the guest has
//! changed: in a private mapping of a file, those that are no longer the file's.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use nix::errno::Errno;

use crate::{
    driver::{
        DriverError,
        image::{CHUNK, ChangedPages, TakePages},
    },
    failure::{Doing as _, Failure},
    memory::BLOCK as PAGE,
};

/// One stretch of addresses that maps one stretch of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    /// In the file, and so in the guest's memory.
    offset: u64,
}

/// Where a process has a file mapped, in order of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Mapping {
    pid: i32,
    pieces: Vec<Piece>,
}

/// A stretch of changed pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changed {
    /// In the process.
    address: u64,
    /// In the guest's memory.
    offset: u64,
    length: u64,
}

impl Mapping {
    /// Finds the private, writable mapping of a file of `bytes`, by its inode's number.
    pub fn find(pid: i32, inode: u64, bytes: u64) -> Result<Self, DriverError> {
        let path = format!("/proc/{pid}/maps");
        let maps = fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
        let mut pieces: Vec<Piece> = maps.lines().filter_map(|line| parse(line, inode)).collect();
        pieces.sort_by_key(|piece| piece.offset);
        // The kernel splits a mapping as it likes; together the pieces must be the whole file.
        let mut expected = 0;
        for piece in &pieces {
            if piece.offset != expected {
                break;
            }
            expected += piece.end - piece.start;
        }
        if expected != bytes {
            let what = format!("process {pid} maps {expected} of {bytes} bytes of inode {inode}");
            return Err(DriverError::Memory(what));
        }
        Ok(Self { pid, pieces })
    }

    /// The pages the guest has written since it started from the file. It must not run meanwhile.
    fn changed(&self) -> Result<Vec<Changed>, Failure> {
        let path = format!("/proc/{}/pagemap", self.pid);
        let pagemap = File::open(&path).doing(|| format!("opening {path}"))?;
        let mut changed = Vec::new();
        for piece in &self.pieces {
            let mut found = |start: u64, end: u64| {
                changed.push(Changed {
                    address: start,
                    offset: start - piece.start + piece.offset,
                    length: end - start,
                });
            };
            match scan(&pagemap, piece.start, piece.end, &mut found) {
                // Kernels before 6.7 do not know the request.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                    walk(&pagemap, piece.start, piece.end, &mut found)
                }
                result => result,
            }
            .doing(|| format!("looking for changed pages in {path}"))?;
        }
        Ok(changed)
    }

    /// The process's memory, to be read at the addresses of [`Changed`].
    fn memory(&self) -> Result<File, Failure> {
        let path = format!("/proc/{}/mem", self.pid);
        File::open(&path).doing(|| format!("opening {path}"))
    }
}

impl ChangedPages for Mapping {
    fn each(&self, take: &mut TakePages<'_>) -> Result<u64, DriverError> {
        let memory = self.memory()?;
        let mut buffer = vec![0; CHUNK as usize];
        let mut all = 0;
        for changed in self.changed()? {
            let mut done = 0;
            while done < changed.length {
                let length = (changed.length - done).min(CHUNK);
                let pages = &mut buffer[..length as usize];
                memory.read_exact_at(pages, changed.address + done).doing(|| "reading changed pages")?;
                take(pages, changed.offset + done)?;
                done += length;
            }
            all += changed.length;
        }
        Ok(all)
    }
}

/// One line of proc(5)'s maps: `start-end perms offset device inode path`.
fn parse(line: &str, inode: u64) -> Option<Piece> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let private_and_writable = fields.next()? == "rw-p";
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let same_inode = fields.nth(1)?.parse::<u64>().ok()? == inode;
    (private_and_writable && same_inode).then_some(())?;
    Some(Piece {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset,
    })
}

// `PAGEMAP_SCAN` of linux/fs.h.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Asks the kernel for the pages that are there and no file's.
fn scan(pagemap: &File, start: u64, end: u64, found: &mut impl FnMut(u64, u64)) -> io::Result<()> {
    let mut regions = vec![PageRegion::default(); 1024];
    let mut position = start;
    while position < end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            flags: 0,
            start: position,
            end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        };
        // SAFETY: the request reads and writes one such structure and at most `vec_len` regions at `vec`; both
        // live through the call.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let count = Errno::result(count)?.cast_unsigned() as usize;
        for region in &regions[..count] {
            found(region.start, region.end);
        }
        if arguments.walk_end <= position {
            return Err(io::Error::other("the kernel's scan does not get on"));
        }
        position = arguments.walk_end;
    }
    Ok(())
}

// Bits of a page's entry in proc(5)'s pagemap.
const ENTRY_FILE_OR_SHARED: u64 = 1 << 61;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_PRESENT: u64 = 1 << 63;

/// The same by reading one entry for each page.
fn walk(pagemap: &File, start: u64, end: u64, found: &mut impl FnMut(u64, u64)) -> io::Result<()> {
    let mut entries = vec![0; 64 << 10];
    let mut stretch: Option<u64> = None;
    let mut position = start;
    while position < end {
        let pages = ((end - position) / PAGE).min(entries.len() as u64 / 8);
        let bytes = &mut entries[..pages as usize * 8];
        pagemap.read_exact_at(bytes, position / PAGE * 8)?;
        for entry in bytes.as_chunks::<8>().0 {
            let entry = u64::from_ne_bytes(*entry);
            let changed = entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && entry & ENTRY_FILE_OR_SHARED == 0;
            match (changed, stretch) {
                (true, None) => stretch = Some(position),
                (false, Some(from)) => {
                    found(from, position);
                    stretch = None;
                }
                _ => {}
            }
            position += PAGE;
        }
    }
    if let Some(from) = stretch {
        found(from, end);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use nix::sys::mman::{MapFlags, ProtFlags, mmap};

    use super::*;

    const PAGES: u64 = 3000;

    /// A file mapped privately into this process, some pages read, some written.
    fn mapped() -> (tempfile::NamedTempFile, u64, Vec<u64>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(PAGES * PAGE).unwrap();
        let length = NonZeroUsize::new((PAGES * PAGE) as usize).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping, of a file that nobody makes shorter.
        let memory = unsafe { mmap(None, length, protection, MapFlags::MAP_PRIVATE, file.as_file(), 0) };
        let memory = memory.unwrap().as_ptr().cast::<u8>();
        let mut written = Vec::new();
        for page in 0..PAGES {
            let offset = (page * PAGE) as usize;
            if page % 7 == 0 || (100..200).contains(&page) {
                // SAFETY: within the mapping.
                unsafe { memory.add(offset).write_volatile(9) };
                written.push(page);
            } else if page % 5 == 0 {
                // SAFETY: within the mapping.
                unsafe { memory.add(offset).read_volatile() };
            }
        }
        (file, memory as u64, written)
    }

    fn pages(of: &[Changed]) -> Vec<u64> {
        of.iter().flat_map(|c| (0..c.length / PAGE).map(|page| c.offset / PAGE + page)).collect()
    }

    #[test]
    fn exactly_the_written_pages_are_found_by_both_ways() {
        use std::os::unix::fs::MetadataExt as _;

        let (file, address, written) = mapped();
        let pid = std::process::id() as i32;
        let inode = file.as_file().metadata().unwrap().ino();
        let mapping = Mapping::find(pid, inode, PAGES * PAGE).unwrap();
        let changed = mapping.changed().unwrap();
        assert_eq!(pages(&changed), written);

        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut walked = Vec::new();
        let end = address + PAGES * PAGE;
        walk(&pagemap, address, end, &mut |start, end| {
            walked.push(Changed { address: start, offset: start - address, length: end - start });
        })
        .unwrap();
        assert_eq!(pages(&walked), written);

        let mut byte = [0];
        mapping.memory().unwrap().read_exact_at(&mut byte, changed[0].address).unwrap();
        assert_eq!(byte, [9]);
    }

    #[test]
    fn a_file_that_is_not_wholly_mapped_is_an_error() {
        let error = Mapping::find(std::process::id() as i32, u64::MAX, PAGE).unwrap_err();
        assert!(matches!(error, DriverError::Memory(_)), "{error}");
    }

    #[test]
    fn only_private_writable_mappings_of_the_inode_count() {
        let line = "7f00-8f00 rw-p 00001000 08:01 42 /proc/self/fd/5 (deleted)";
        assert_eq!(parse(line, 42), Some(Piece { start: 0x7f00, end: 0x8f00, offset: 0x1000 }));
        assert_eq!(parse(line, 43), None);
        assert_eq!(parse(&line.replace("rw-p", "rw-s"), 42), None);
        assert_eq!(parse("garbage", 42), None);
    }
}
