//! Prints how fast the page server is: all of a guest's memory touched in random order, against what this machine
//! copies in steps of 4 KiB from a mapped file to such memory within one process. Needs root; build it with
//! `--release`. The first argument may be the number of rounds.

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

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use region::{Kind, Region, memory_file, shuffled};
use wrenn_vmm::uffd::{DEFAULT_WORKERS, MemorySource, PAGE, PageServerConfig, PageServerHandle};

const SERVER: &str = "page-server";
/// 256 MiB.
const PAGES: u64 = 65_536;
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
    tokio::runtime::Runtime::new().unwrap().block_on(measure(rounds));
    ExitCode::SUCCESS
}

/// One way to fill the memory, and how long it took each time.
struct Row {
    name: &'static str,
    took: Vec<Duration>,
    /// Of the last round.
    faults: u64,
}

impl Row {
    fn new(name: &'static str) -> Self {
        Self { name, took: Vec::new(), faults: 0 }
    }

    /// In MiB/s.
    fn rates(&self) -> Vec<f64> {
        let mib = (PAGES * PAGE) as f64 / f64::from(1 << 20);
        let mut rates: Vec<f64> = self.took.iter().map(|took| mib / took.as_secs_f64()).collect();
        rates.sort_by(f64::total_cmp);
        rates
    }

    fn median(&self) -> f64 {
        self.rates()[self.took.len() / 2]
    }
}

async fn measure(rounds: usize) {
    let directory = tempfile::tempdir().unwrap();
    let memory = directory.path().join("memory");
    memory_file(&memory, PAGES, |_| false);
    let mut rows = [
        Row::new("baseline: 4 KiB copies, in order of the file"),
        Row::new("baseline: 4 KiB copies, in random order"),
        Row::new("server: one thread touches at random"),
        Row::new("server: two threads touch at random"),
        Row::new("server: one thread, all of it being prefetched"),
    ];
    // In turns, so that what else the machine does is spread over all.
    for round in 0..rounds {
        let order = shuffled(PAGES, round as u64);
        rows[0].took.push(baseline(&memory, &(0..PAGES).collect::<Vec<_>>()));
        rows[1].took.push(baseline(&memory, &order));
        for (row, threads) in [(2, 1), (3, 2)] {
            let (took, faults) = served(directory.path(), &order, threads, false).await;
            rows[row].took.push(took);
            rows[row].faults = faults;
        }
        let (took, faults) = served(directory.path(), &order, 1, true).await;
        rows[4].took.push(took);
        rows[4].faults = faults;
    }
    print(&rows);
}

fn print(rows: &[Row]) {
    println!("{} MiB of memory; MiB/s", (PAGES * PAGE) >> 20);
    println!("{:<46} {:>8} {:>8} {:>8} {:>8} {:>8}", "", "least", "median", "most", "of base", "faults");
    let base = rows[1].median();
    for row in rows {
        let rates = row.rates();
        let (least, most) = (rates[0], rates[rates.len() - 1]);
        let share = 100.0 * row.median() / base;
        println!(
            "{:<46} {least:>8.0} {:>8.0} {most:>8.0} {share:>7.0}% {:>8}",
            row.name,
            row.median(),
            row.faults
        );
    }
}

/// What the machine can do: nobody faults, nobody is told.
fn baseline(memory: &Path, order: &[u64]) -> Duration {
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
    let took = begun.elapsed();
    // SAFETY: nobody reaches the mapping any more.
    unsafe { nix::sys::mman::munmap(mapped, length.get()) }.unwrap();
    took
}

/// Touches all pages in memory that a server fills, from the handing over of the memory on; with how many faults.
async fn served(directory: &Path, order: &[u64], threads: usize, prefetch: bool) -> (Duration, u64) {
    let working_set = directory.join("working-set");
    let config = PageServerConfig {
        socket: directory.join("vmm.sock"),
        control: directory.join("control.sock"),
        memory: MemorySource::Flat { file: directory.join("memory") },
        prefetch: prefetch.then(|| working_set.clone()),
        record: (!prefetch).then_some(working_set),
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
    let took = begun.elapsed();
    let faults = server.stats(PATIENCE).await.unwrap().faults;
    if !prefetch {
        server.ready().await.unwrap();
    }
    server.end().await.unwrap();
    (took, faults)
}
