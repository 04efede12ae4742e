//! The threads that answer faults.
//!
//! Each takes a fault, reads what the snapshot has for it and its neighbours, and places it. What may come
//! later (more neighbours, the working set) is placed step by step while no fault waits. An idle thread
//! waits for the descriptor alone, and the kernel wakes one for each fault.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use nix::sys::eventfd::EventFd;

use super::{
    control::Stats,
    guest::{GuestMemory, Idle, Present, Stop},
    pages::STEP,
    source::{PAGE, PageSource},
};
use crate::{
    failure::{Doing as _, Failure},
    memory::BlockAt,
};

/// How the service of a VMM ended.
pub type End = Result<(), Failure>;

/// Why pages are placed before they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A neighbour was asked for.
    Neighbour,
    /// The last restore needed it.
    Prefetch,
}

/// What a thread has still to do when no fault waits.
type Later = VecDeque<(Range<u64>, Purpose)>;

/// So much of what is prefetched is being fetched from the disk at a time: 4 MiB keep one busy, and leave it free for
/// what is asked for.
const AHEAD: usize = 32;

/// The memory of one VMM, while it is served.
pub struct Service {
    pub memory: GuestMemory,
    source: Arc<dyn PageSource>,
    /// Since when each thread has been at what it does, in milliseconds after `started`, plus one; 0 while it
    /// waits.
    busy: Vec<AtomicU64>,
    started: Instant,
    over: AtomicBool,
    end: Mutex<Option<End>>,
    ended: Arc<EventFd>,
    faults: AtomicU64,
    prefetched: AtomicU64,
}

impl Service {
    /// `ended` becomes readable when [`Self::end`] has something.
    pub fn new(
        memory: GuestMemory,
        source: Arc<dyn PageSource>,
        workers: usize,
        ended: Arc<EventFd>,
    ) -> Self {
        Self {
            memory,
            source,
            busy: (0..workers).map(|_| AtomicU64::new(1)).collect(),
            started: Instant::now(),
            over: AtomicBool::new(false),
            end: Mutex::new(None),
            ended,
            faults: AtomicU64::new(0),
            prefetched: AtomicU64::new(0),
        }
    }

    /// Starts the threads; `prefetch` is what one of them places meanwhile. They are never waited for: one that
    /// hangs in a read of a broken disk must not keep the process from ending.
    pub fn start(self: &Arc<Self>, prefetch: Vec<Range<u64>>) -> Result<(), Failure> {
        let mut later: Later = prefetch.into_iter().map(|range| (range, Purpose::Prefetch)).collect();
        for number in 0..self.busy.len() {
            let idle = self.memory.idle()?;
            let service = self.clone();
            let later = std::mem::take(&mut later);
            let run = move || {
                let _guard = Guard(&service);
                let result = service.work(number, &idle, later);
                service.finish(match result {
                    Ok(()) | Err(Stop::Gone) => Ok(()),
                    Err(Stop::Failed(failure)) => Err(failure),
                });
            };
            let thread = thread::Builder::new().name(format!("faults-{number}")).spawn(run);
            thread.doing(|| "starting a thread")?;
        }
        Ok(())
    }

    /// Tells the threads that there is nobody left to serve. Idle ones find out when they are woken next, or by
    /// the end of the process.
    pub fn stop(&self) {
        self.over.store(true, Relaxed);
    }

    /// How it ended, if it did, and was not asked before.
    pub fn end(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn stats(&self) -> Stats {
        let now = self.now();
        let busy = || self.busy.iter().map(|busy| busy.load(Relaxed)).filter(|&since| since > 0);
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let counts = &self.memory.counts;
        Stats {
            connected: true,
            faults: count(&self.faults),
            copied: count(&counts.copied),
            zeroed: count(&counts.zeroed),
            prefetched: count(&self.prefetched),
            removed: count(&counts.removed),
            present: count(&counts.present),
            retries: count(&counts.retries),
            busy_ms: busy().map(|since| now.saturating_sub(since)).max().unwrap_or(0),
            idle: busy().next().is_none(),
            recorded: None,
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    fn finish(&self, end: End) {
        self.over.store(true, Relaxed);
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        // It can only fail by being readable already, as often as a number can count.
        let _ = self.ended.write(1);
    }

    fn work(&self, number: usize, idle: &Idle, mut later: Later) -> Result<(), Stop> {
        let mut buffer = vec![0; (STEP * PAGE) as usize];
        for (first, _) in later.iter().take(AHEAD + 1) {
            self.source.expect(first.start, first.end - first.start);
        }
        while !self.over.load(Relaxed) {
            // Each thing taken up is progress.
            self.busy[number].store(self.now(), Relaxed);
            let mut fault = self.memory.next_fault();
            if fault.is_none() && !later.is_empty() {
                self.memory.look()?;
                fault = self.memory.next_fault();
            }
            if let Some(page) = fault {
                self.answer(page, &mut buffer, &mut later)?;
            } else if let Some((range, purpose)) = later.pop_front() {
                if let Some((next, Purpose::Prefetch)) = later.get(AHEAD) {
                    self.source.expect(next.start, next.end - next.start);
                }
                self.place_unclaimed(range, purpose, &mut buffer)?;
            } else {
                self.busy[number].store(0, Relaxed);
                self.memory.wait(idle)?;
            }
        }
        Ok(())
    }

    fn is_zero(&self, page: u64) -> bool {
        self.source.block(page) == BlockAt::Zero
    }

    fn answer(&self, page: u64, buffer: &mut [u8], later: &mut Later) -> Result<(), Stop> {
        self.faults.fetch_add(1, Relaxed);
        let within = self.memory.layout.neighbours(page).unwrap_or(page..page + 1);
        let removed = self.memory.removed_from(page..within.end.min(page + STEP));
        if removed > 0 {
            return self.memory.place_zeros(page..page + removed, Present::MayBe);
        }
        let plan = self.memory.pages.fault(page, &within, |other| self.is_zero(other));
        // Before anything that is only likely to be needed.
        for range in plan.later.into_iter().rev() {
            later.push_front((range, Purpose::Neighbour));
        }
        if self.is_zero(page) {
            self.memory.place_zeros(plan.now, Present::Not)
        } else {
            self.place_content(plan.now, Some(page), buffer)
        }
    }

    /// Places what nobody has claimed yet of what may be needed.
    fn place_unclaimed(&self, range: Range<u64>, purpose: Purpose, buffer: &mut [u8]) -> Result<(), Stop> {
        for piece in self.memory.layout.pieces(range) {
            for (taken, zero) in self.memory.pages.take(piece, |page| self.is_zero(page)) {
                if purpose == Purpose::Prefetch {
                    self.prefetched.fetch_add(taken.end - taken.start, Relaxed);
                }
                if zero {
                    self.memory.place_zeros(taken, Present::Not)?;
                } else {
                    self.place_content(taken, None, buffer)?;
                }
            }
        }
        Ok(())
    }

    /// One step at most; reading is the slow part, and is done before anything is locked.
    fn place_content(&self, range: Range<u64>, wanted: Option<u64>, buffer: &mut [u8]) -> Result<(), Stop> {
        let count = range.end - range.start;
        let buffer = &mut buffer[..(count * PAGE) as usize];
        let read = self.source.read(range.start, count, buffer);
        read.doing(|| format!("reading {count} pages of the snapshot from page {} on", range.start))?;
        self.memory.place(range, wanted, buffer)
    }
}

/// A thread that panics would leave faults unanswered and the VMM hanging: that is the end.
struct Guard<'a>(&'a Service);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let what = io::Error::other("a thread has panicked");
            self.0.finish(Err(Failure::new("answering faults", what)));
        }
    }
}
