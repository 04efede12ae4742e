//! Which pages of a private mapping a stopped machine has changed, and their copy into a clone of the file below.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A place in a process's memory that maps a file.
struct Mapping {
    start: u64,
    end: u64,
    file_offset: u64,
}

// Structure and numbers of linux/fs.h.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct ScanArgument {
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

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArgument);

/// Regions asked for at a time.
const BATCH: usize = 4096;

/// Copies what process `pid` has changed of its private mapping of `mapped` into `target`, a copy of `mapped`.
/// Answers with the number of bytes copied. The process must stand still.
pub fn copy_changed(pid: u32, mapped: &Path, target: &File) -> Result<u64> {
    let memory = File::open(format!("/proc/{pid}/mem")).context("opening the machine's memory")?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).context("opening the machine's page map")?;
    let mut copied = 0;
    let mut buffer = Vec::new();
    for mapping in mappings(pid, mapped)? {
        for (start, end) in changed(&pagemap, &mapping)? {
            buffer.resize(usize::try_from(end - start)?, 0);
            memory.read_exact_at(&mut buffer, start)?;
            target.write_all_at(&buffer, mapping.file_offset + start - mapping.start)?;
            copied += end - start;
        }
    }
    Ok(copied)
}

/// How many bytes process `pid` has changed of its private mappings of files whose path names `named`.
pub fn changed_bytes(pid: u32, named: &str) -> Result<u64> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).context("opening the machine's page map")?;
    let mut bytes = 0;
    for mapping in mappings_where(pid, |line| line.contains(named))? {
        bytes += changed(&pagemap, &mapping)?.iter().map(|(start, end)| end - start).sum::<u64>();
    }
    Ok(bytes)
}

fn mappings(pid: u32, mapped: &Path) -> Result<Vec<Mapping>> {
    let name = mapped.to_string_lossy();
    mappings_where(pid, |line| line.ends_with(&*name)).with_context(|| format!("{name} is not mapped"))
}

fn mappings_where(pid: u32, wanted: impl Fn(&str) -> bool) -> Result<Vec<Mapping>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| wanted(line)) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').context("a range of addresses")?;
        let hex = |text: &str| u64::from_str_radix(text, 16).context("an address");
        found.push(Mapping { start: hex(start)?, end: hex(end)?, file_offset: hex(fields[2])? });
    }
    ensure!(!found.is_empty(), "nothing of the kind is mapped by {pid}");
    Ok(found)
}

/// Anonymous pages, present or swapped, where the mapping is of a file: those the machine wrote to.
fn changed(pagemap: &File, mapping: &Mapping) -> Result<Vec<(u64, u64)>> {
    let mut all = Vec::new();
    let mut start = mapping.start;
    while start < mapping.end {
        let mut regions = vec![PageRegion::default(); BATCH];
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start,
            end: mapping.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: BATCH as u64,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_FILE,
            ..ScanArgument::default()
        };
        // SAFETY: the kernel reads and writes one such argument and at most `vec_len` regions; both live through the call.
        let found =
            unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut argument) }.context("scanning pages")?;
        all.extend(regions[..usize::try_from(found)?].iter().map(|region| (region.start, region.end)));
        start = argument.walk_end;
    }
    Ok(all)
}
