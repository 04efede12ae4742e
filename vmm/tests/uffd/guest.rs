//! What stands for the VMM and its guest: a process with such memory, which is told by lines on its standard
//! input what to do with it, and says for each what it found.

use std::{
    io::{self, BufRead as _, Write as _},
    path::Path,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    thread,
};

use super::region::{Kind, Region, WORDS, content, is_hole, scramble, shuffled};

/// Arguments: the server's socket, number of pages, `anonymous` or `shared`.
pub fn main(arguments: &[String]) {
    let [socket, pages, kind] = arguments else { panic!("{arguments:?}") };
    let kind = if kind == "shared" { Kind::Shared } else { Kind::Anonymous };
    let region = Region::new(pages.parse().unwrap(), kind);
    let _connection = region.connect(Path::new(socket)).unwrap();
    println!("connected");
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let (what, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        let result = match (what, numbers[..].as_ref()) {
            ("touch", pages) => pages.iter().try_for_each(|&page| check(&region, page)),
            ("all", [threads, seed]) => all(&region, *threads, *seed),
            ("churn", [threads, rounds, seed]) => churn(&region, *threads, *rounds, *seed),
            _ => panic!("{line}"),
        };
        println!("{}", result.err().unwrap_or_else(|| "right".to_owned()));
        io::stdout().flush().unwrap();
    }
}

/// Whether a page that was never written or given back is what the snapshot has.
fn check(region: &Region, page: u64) -> Result<(), String> {
    for word in 0..WORDS {
        let (found, expected) = (region.read(page, word), content(page, word));
        if found != expected {
            return Err(format!("page {page} word {word}: {found:#x}, not {expected:#x}"));
        }
    }
    Ok(())
}

/// All pages by all threads, each in an order of its own.
fn all(region: &Region, threads: u64, seed: u64) -> Result<(), String> {
    let visit = |thread: u64| {
        let order = shuffled(region.pages(), seed * 1000 + thread);
        order.into_iter().try_for_each(|page| check(region, page))
    };
    in_parallel(threads, visit)
}

fn in_parallel(threads: u64, work: impl Fn(u64) -> Result<(), String> + Sync) -> Result<(), String> {
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        running.into_iter().try_for_each(|thread| thread.join().unwrap())
    })
}

/// Pages are given back and written in groups of this many, each by one thread alone.
const GROUP: u64 = 4;

/// What a page was last made to be by its thread.
#[derive(Clone, Copy, Default)]
struct Last {
    given_back: bool,
    /// Its first word, if that was written since.
    first: Option<u64>,
}

/// Pages are read by everybody while the thread they belong to writes them and gives them back.
fn churn(region: &Region, threads: u64, rounds: u64, seed: u64) -> Result<(), String> {
    // Set once a page was given back: from then on nobody may find in it what the snapshot has.
    let given_back: Vec<AtomicBool> = (0..region.pages()).map(|_| AtomicBool::new(false)).collect();
    let writes = AtomicU64::new(2);
    in_parallel(threads, |number| {
        let mut owner = Owner { region, given_back: &given_back, writes: &writes, last: vec![] };
        owner.last = vec![Last::default(); region.pages() as usize];
        let groups = region.pages() / GROUP / threads;
        for round in 0..rounds {
            let random = scramble(seed ^ scramble(number << 32 | round));
            let group = (random >> 8) % groups * threads + number;
            match random % 4 {
                0 => owner.give_back(group * GROUP, random >> 40)?,
                1 => owner.write(group * GROUP + (random >> 40) % GROUP),
                2 => owner.check(group * GROUP + (random >> 40) % GROUP)?,
                _ => owner.look((random >> 8) % region.pages())?,
            }
        }
        (0..groups).try_for_each(|group| {
            let first = (group * threads + number) * GROUP;
            (first..first + GROUP).try_for_each(|page| owner.check(page))
        })
    })
}

struct Owner<'a> {
    region: &'a Region,
    given_back: &'a [AtomicBool],
    /// Values written so far: always even, while what the snapshot has is odd.
    writes: &'a AtomicU64,
    last: Vec<Last>,
}

impl Owner<'_> {
    fn give_back(&mut self, first: u64, random: u64) -> Result<(), String> {
        // In half of all cases it was there.
        if random.is_multiple_of(2) {
            self.check(first + random / 2 % GROUP)?;
        }
        self.region.remove(first, GROUP);
        for page in first..first + GROUP {
            self.given_back[page as usize].store(true, Release);
            self.last[page as usize] = Last { given_back: true, first: None };
        }
        if (random / 16).is_multiple_of(2) { self.check(first + random / 2 % GROUP) } else { Ok(()) }
    }

    /// Only the first word of a page is ever written.
    fn write(&mut self, page: u64) {
        let value = self.writes.fetch_add(2, Relaxed);
        self.region.write(page, 0, value);
        let last = &mut self.last[page as usize];
        *last = Last { first: Some(value), ..*last };
    }

    /// Nobody else changes this page, so it is exactly what it was made to be.
    fn check(&self, page: u64) -> Result<(), String> {
        let last = self.last[page as usize];
        for word in [0, 1, WORDS / 2, WORDS - 1] {
            let expected = match last.first {
                Some(value) if word == 0 => value,
                _ if last.given_back => 0,
                _ => content(page, word),
            };
            let found = self.region.read(page, word);
            if found != expected {
                return Err(format!("own page {page} word {word}: {found:#x}, not {expected:#x}"));
            }
        }
        Ok(())
    }

    /// A page of anybody's, which may be changing.
    fn look(&self, page: u64) -> Result<(), String> {
        let given_back = self.given_back[page as usize].load(Acquire);
        let found = self.region.read(page, WORDS - 1);
        let allowed = found == 0 || (!given_back && found == content(page, WORDS - 1));
        if allowed && (given_back || is_hole(page) || found != 0 || self.given_back_by_now(page)) {
            return Ok(());
        }
        Err(format!("page {page}: {found:#x} while given back = {given_back}"))
    }

    /// A page may be zeros a moment before the thread that gives it back has said so.
    fn given_back_by_now(&self, page: u64) -> bool {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::time::Instant::now() < deadline {
            if self.given_back[page as usize].load(Acquire) {
                return true;
            }
            thread::yield_now();
        }
        false
    }
}
