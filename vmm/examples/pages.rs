//! Prints, as JSON, how fast the page server is: all of a guest's memory touched in random order, against what this
//! machine copies in steps of 4 KiB from a mapped file to such memory within one process; and the first use of a
//! recorded working set, prefetched and not. Needs root; build it with `--release`. The first argument may be the
//! number of rounds. The benchmark's group `pages` makes rows of it.

#[path = "../tests/uffd/region.rs"]
#[expect(dead_code, reason = "the tests do more with such memory")]
mod region;

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    path::Path,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::mman::{MapFlags, ProtFlags, mmap},
};
use region::{Kind, Region, memory_file, shuffled};
use serde::Serialize;
use wrenn_vmm::uffd::{DEFAULT_WORKERS, MemorySource, PAGE, PageServerConfig, PageServerHandle};

const SERVER: &str = "page-server";
/// 256 MiB.
const PAGES: u64 = 65_536;
/// Where a guest works after its restore: that many stretches of so many pages, 32 MiB together.
const PLACES: u64 = 16;
const PLACE: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(60);

/// A `struct uffdio_copy` of linux/userfaultfd.h.
#[repr(C)]
pub struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, Copy);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, config] = &arguments[..]
        && role == SERVER
    {
        return match wrenn_vmm::uffd::run(config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        };
    }
    let rounds = arguments.first().map_or(10, |rounds| rounds.parse().expect("number of rounds"));
    let measured = tokio::runtime::Runtime::new().unwrap().block_on(measure(rounds));
    println!("{}", serde_json::to_string_pretty(&measured).unwrap());
    ExitCode::SUCCESS
}

/// Seconds that each thing took in each round; `bytes` of memory are touched.
#[derive(Default, Serialize)]
struct Measured {
    bytes: u64,
    /// 4 KiB copies from a mapped file, in its order and at random.
    copied_in_order: Vec<f64>,
    copied_at_random: Vec<f64>,
    /// All of it touched at random, served to one thread, to two, and to one while all of it is prefetched.
    served_to_one: Vec<f64>,
    served_to_two: Vec<f64>,
    served_and_prefetched: Vec<f64>,
    /// Of the working set alone, in the order in which it was recorded, which is not that of the memory.
    first_use: Vec<f64>,
    first_use_prefetched: Vec<f64>,
    /// The same with a memory file that the host has not cached.
    first_use_from_disk: Vec<f64>,
    first_use_prefetched_from_disk: Vec<f64>,
}

async fn measure(rounds: usize) -> Measured {
    let directory = tempfile::tempdir().unwrap();
    let memory = directory.path().join("memory");
    memory_file(&memory, PAGES, |_| false);
    let file = File::open(&memory).unwrap();
    // Only what is on the disk can be dropped from the cache.
    file.sync_all().unwrap();
    let drop_cache = || posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let whole = directory.path().join("all-of-it");
    let mut measured = Measured { bytes: PAGES * PAGE, ..Measured::default() };
    // In turns, so that what else the machine does is spread over all.
    for round in 0..rounds {
        let order = shuffled(PAGES, round as u64);
        measured.copied_in_order.push(baseline(&memory, &(0..PAGES).collect::<Vec<_>>()));
        measured.copied_at_random.push(baseline(&memory, &order));
        let serve = async |order, threads, set| served(directory.path(), order, threads, set).await;
        measured.served_to_one.push(serve(&order, 1, WorkingSet::Recorded(&whole)).await);
        measured.served_to_two.push(serve(&order, 2, WorkingSet::Recorded(&whole)).await);
        measured.served_and_prefetched.push(serve(&order, 1, WorkingSet::Prefetched(&whole)).await);

        let set = directory.path().join("working-set");
        let order = working_set(round as u64);
        measured.first_use.push(serve(&order, 1, WorkingSet::Recorded(&set)).await);
        measured.first_use_prefetched.push(serve(&order, 1, WorkingSet::Prefetched(&set)).await);
        drop_cache();
        measured.first_use_from_disk.push(serve(&order, 1, WorkingSet::Recorded(&set)).await);
        drop_cache();
        measured.first_use_prefetched_from_disk.push(serve(&order, 1, WorkingSet::Prefetched(&set)).await);
    }
    measured
}

/// The pages of a working set in the order in which the guest comes to them, another for every seed.
fn working_set(seed: u64) -> Vec<u64> {
    let places: Vec<u64> = shuffled(PAGES / PLACE, seed).into_iter().take(PLACES as usize).collect();
    let order = shuffled(PLACES * PLACE, seed).into_iter();
    order.map(|at| places[(at / PLACE) as usize] * PLACE + at % PLACE).collect()
}

/// What the machine can do: nobody faults, nobody is told.
fn baseline(memory: &Path, order: &[u64]) -> f64 {
    let file = File::open(memory).unwrap();
    let length = std::num::NonZeroUsize::new((PAGES * PAGE) as usize).unwrap();
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: a new mapping, of a file that nobody changes.
    let mapped = unsafe { mmap(None, length, ProtFlags::PROT_READ, flags, &file, 0) }.unwrap();
    let region = Region::new(PAGES, Kind::Anonymous);
    let begun = Instant::now();
    for &page in order {
        let from = mapped.as_ptr() as u64 + page * PAGE;
        let mut copy = Copy { to: region.address(page), from, length: PAGE, mode: 0, copied: 0 };
        // SAFETY: one page of each mapping.
        unsafe { uffdio_copy(region.userfault.as_raw_fd(), &raw mut copy) }.unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    // SAFETY: nobody reaches the mapping any more.
    unsafe { nix::sys::mman::munmap(mapped, length.get()) }.unwrap();
    took
}

/// What a server does about the working set that lies there.
#[derive(Clone, Copy)]
enum WorkingSet<'a> {
    Recorded(&'a Path),
    Prefetched(&'a Path),
}

/// Touches pages of memory that a server fills, in this order, from the handing over of the memory on.
async fn served(directory: &Path, order: &[u64], threads: usize, set: WorkingSet<'_>) -> f64 {
    let (record, prefetch) = match set {
        WorkingSet::Recorded(path) => (Some(path.to_owned()), None),
        WorkingSet::Prefetched(path) => (None, Some(path.to_owned())),
    };
    let recorded = record.is_some();
    let config = PageServerConfig {
        socket: directory.join("vmm.sock"),
        control: directory.join("control.sock"),
        memory: MemorySource::Flat { file: directory.join("memory") },
        prefetch,
        record,
        user: None,
        accept_within: PATIENCE,
        record_for: PATIENCE * 60,
        workers: DEFAULT_WORKERS,
    };
    let program = std::env::current_exe().unwrap();
    let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
    let server = PageServerHandle::spawn(&program, &[SERVER.into()], &config, log).await.unwrap();
    let region = Arc::new(Region::new(PAGES, Kind::Anonymous));
    let begun = Instant::now();
    let _connection = region.connect(&config.socket).unwrap();
    thread::scope(|scope| {
        for number in 0..threads {
            let region = &region;
            scope.spawn(move || {
                for &page in order.iter().skip(number).step_by(threads) {
                    std::hint::black_box(region.read(page, 0));
                }
            });
        }
    });
    let took = begun.elapsed().as_secs_f64();
    if recorded {
        server.ready().await.unwrap();
    }
    server.end().await.unwrap();
    took
}
