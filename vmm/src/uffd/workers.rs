//! The threads that answer faults.
//!
//! Each takes a fault, reads what the snapshot has for it and its neighbours, and places it. What may come
//! later (more neighbours, the working set) is placed step by step while no fault waits. An idle thread
//! waits for the descriptor alone, and the kernel wakes one for each fault.
//!
//! # Why no page is ever wrong
//! A page the VMM has given back is zeros when it is touched again, whatever the snapshot has. The kernel
//! holds the VMM's `madvise` back until the message about it is *read*, and drops the pages then. So messages
//! are read, and `removed` brought up to date, under its write lock; and content of the snapshot is placed
//! under its read lock, after a look at it. A copy that began before the message was read is
//! dropped with the rest, and one that begins after it sees the page as removed. A copy that meets a message
//! nobody has read is refused by the kernel with `EAGAIN`: then the lock is let go, the messages are read,
//! and it looks again. Zeros need no such care: where they are placed they are right before and after.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};

use super::{
    control::Stats,
    layout::Layout,
    pages::{Pages, Purpose, Removed, STEP},
    source::{BlockAt, PAGE, PageSource},
    userfault::{Message, Outcome, Userfault},
};
use crate::failure::{Doing as _, Failure};

/// How long a page that the host has no room for is tried again.
const PATIENCE_FOR_MEMORY: Duration = Duration::from_secs(10);
/// Between two tries of what only another thread's progress can make possible.
const BREATH: Duration = Duration::from_micros(50);

/// How the service of a VMM ended.
pub type End = Result<(), Failure>;

/// What a thread has still to do when no fault waits.
type Later = VecDeque<(Range<u64>, Purpose)>;

/// The memory of one VMM, while it is served.
pub struct Service {
    userfault: Userfault,
    layout: Layout,
    source: Arc<dyn PageSource>,
    pub pages: Pages,
    removed: RwLock<Removed>,
    /// Pages of faults that were read together with another.
    waiting: Mutex<VecDeque<u64>>,
    /// Counts what is in `waiting` for threads that sleep.
    more: EventFd,
    /// Since when each thread has been at what it does, in milliseconds after `started`, plus one.
    busy: Vec<AtomicU64>,
    started: Instant,
    over: AtomicBool,
    end: Mutex<Option<End>>,
    ended: Arc<EventFd>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    faults: AtomicU64,
    copied: AtomicU64,
    zeroed: AtomicU64,
    prefetched: AtomicU64,
    removed: AtomicU64,
    present: AtomicU64,
    retries: AtomicU64,
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Relaxed);
}

/// Why a thread stops before the service is over.
enum Stop {
    Gone,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Service {
    /// `ended` becomes readable when [`Self::end`] has something.
    pub fn new(
        userfault: Userfault,
        layout: Layout,
        source: Arc<dyn PageSource>,
        workers: usize,
        ended: Arc<EventFd>,
    ) -> Result<Self, Failure> {
        let count = source.blocks();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
        Ok(Self {
            userfault,
            layout,
            source,
            pages: Pages::new(count),
            removed: RwLock::new(Removed::new(count)),
            waiting: Mutex::default(),
            more: EventFd::from_flags(flags).doing(|| "making an event descriptor")?,
            busy: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            started: Instant::now(),
            over: AtomicBool::new(false),
            end: Mutex::new(None),
            ended,
            counts: Counts::default(),
        })
    }

    /// Starts the threads; `prefetch` is what one of them places meanwhile. They are never waited for: one that
    /// hangs in a read of a broken disk must not keep the process from ending.
    pub fn start(self: &Arc<Self>, prefetch: Vec<Range<u64>>) -> Result<(), Failure> {
        let mut later: Later = prefetch.into_iter().map(|range| (range, Purpose::Prefetch)).collect();
        for number in 0..self.busy.len() {
            let idle = self.idle()?;
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
        lock(&self.end).take()
    }

    pub fn stats(&self) -> Stats {
        let now = self.now();
        let longest = self.busy.iter().map(|busy| busy.load(Relaxed)).filter(|&since| since > 0);
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            connected: true,
            faults: count(&self.counts.faults),
            copied: count(&self.counts.copied),
            zeroed: count(&self.counts.zeroed),
            prefetched: count(&self.counts.prefetched),
            removed: count(&self.counts.removed),
            present: count(&self.counts.present),
            retries: count(&self.counts.retries),
            busy_ms: longest.map(|since| now.saturating_sub(since)).max().unwrap_or(0),
            ..Stats::default()
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    fn finish(&self, end: End) {
        self.over.store(true, Relaxed);
        lock(&self.end).get_or_insert(end);
        // It can only fail by being readable already, as often as a number can count.
        let _ = self.ended.write(1);
    }

    /// What an idle thread waits for.
    fn idle(&self) -> Result<Epoll, Failure> {
        let doing = || "making an epoll descriptor";
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing(doing)?;
        // One thread is enough for one event.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, 0);
        epoll.add(&self.userfault, event).doing(doing)?;
        epoll.add(&self.more, event).doing(doing)?;
        Ok(epoll)
    }

    fn work(&self, number: usize, idle: &Epoll, mut later: Later) -> Result<(), Stop> {
        let mut buffer = vec![0; (STEP * PAGE) as usize];
        while !self.over.load(Relaxed) {
            // Each thing taken up is progress.
            self.busy[number].store(self.now(), Relaxed);
            if let Some(page) = self.next_fault(!later.is_empty())? {
                self.answer(page, &mut buffer, &mut later)?;
            } else if let Some((range, purpose)) = later.pop_front() {
                self.place_claimed(range, purpose, &mut buffer)?;
            } else {
                self.busy[number].store(0, Relaxed);
                match idle.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno).doing(|| "waiting for faults").map_err(Stop::from),
                }
                self.busy[number].store(self.now(), Relaxed);
                // An eventfd that another thread was quicker to read.
                let _ = self.more.read();
                self.read_messages(true)?;
            }
        }
        Ok(())
    }

    /// A fault that is known, or, when there is other work to do, one that can be read.
    fn next_fault(&self, look: bool) -> Result<Option<u64>, Failure> {
        let known = lock(&self.waiting).pop_front();
        if known.is_some() || !look {
            return Ok(known);
        }
        let mut wanted = [PollFd::new(self.userfault.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, PollTimeout::ZERO) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(errno).doing(|| "looking for faults"),
        }
        self.read_messages(true)?;
        Ok(lock(&self.waiting).pop_front())
    }

    /// Reads what the kernel has to say; whether there was anything. The thread that calls may take one fault
    /// itself next.
    fn read_messages(&self, takes_one: bool) -> Result<bool, Failure> {
        let mut faults = Vec::new();
        let any = {
            // From here until it is let go nobody places content: see above.
            let mut removed = self.removed.write().unwrap_or_else(PoisonError::into_inner);
            let messages = self.userfault.read()?;
            for message in &messages {
                match *message {
                    Message::Fault { address } => faults.push(self.page_of(address)?),
                    Message::Remove { start, end } => {
                        for range in self.layout.pages_between(start, end) {
                            add(&self.counts.removed, range.end - range.start);
                            removed.add(range.clone());
                            self.pages.withdraw(range);
                        }
                    }
                }
            }
            !messages.is_empty()
        };
        let mut waiting = lock(&self.waiting);
        let before = waiting.len();
        for page in faults {
            // One answer is enough for all who wait for a page, if it is still to come.
            if !waiting.contains(&page) {
                waiting.push_back(page);
            }
        }
        let for_others = (waiting.len() - before).saturating_sub(usize::from(takes_one)) as u64;
        drop(waiting);
        if for_others > 0 {
            self.more.write(for_others).doing(|| "waking another thread")?;
        }
        Ok(any)
    }

    fn page_of(&self, address: u64) -> Result<u64, Failure> {
        self.layout.page_at(address).ok_or_else(|| {
            let what = "it is in none of the VMM's memory regions";
            Failure::new(format!("finding the page of {address:#x}"), io::Error::other(what))
        })
    }

    fn is_zero(&self, page: u64) -> bool {
        self.source.block(page) == BlockAt::Zero
    }

    fn answer(&self, page: u64, buffer: &mut [u8], later: &mut Later) -> Result<(), Stop> {
        add(&self.counts.faults, 1);
        let within = self.layout.neighbours(page).unwrap_or(page..page + 1);
        if let Some(zeros) = self.removed_from(page, &within) {
            return self.place_zeros(zeros);
        }
        let plan = self.pages.fault(page, &within, |other| self.is_zero(other));
        // Before anything that is only likely to be needed.
        for range in plan.later.into_iter().rev() {
            later.push_front((range, Purpose::Neighbour));
        }
        if self.is_zero(page) {
            self.place_zeros(plan.now)
        } else {
            self.place_content(plan.now, Some(page), buffer)
        }
    }

    /// If the page was given back, it and those after it that were too, for one step at most.
    fn removed_from(&self, page: u64, within: &Range<u64>) -> Option<Range<u64>> {
        let removed = self.removed.read().unwrap_or_else(PoisonError::into_inner);
        let end = (page + STEP).min(within.end);
        removed.has(page).then(|| page..page + removed.alike(page..end))
    }

    /// Places what nobody has claimed yet of what may be needed.
    fn place_claimed(&self, range: Range<u64>, purpose: Purpose, buffer: &mut [u8]) -> Result<(), Stop> {
        for piece in self.layout.pieces(range).collect::<Vec<_>>() {
            for (taken, zero) in self.pages.take(piece, purpose, |page| self.is_zero(page)) {
                if purpose == Purpose::Prefetch {
                    add(&self.counts.prefetched, taken.end - taken.start);
                }
                if zero {
                    self.place_zeros(taken)?;
                } else {
                    self.place_content(taken, None, buffer)?;
                }
            }
        }
        Ok(())
    }

    /// Content of the snapshot, for pages that follow each other in the VMM, one step at most. `wanted` is one
    /// that somebody waits for.
    fn place_content(&self, range: Range<u64>, wanted: Option<u64>, buffer: &mut [u8]) -> Result<(), Stop> {
        let count = range.end - range.start;
        let buffer = &mut buffer[..(count * PAGE) as usize];
        // The slow part, without the lock.
        let read = self.source.read(range.start, count, buffer);
        read.doing(|| format!("reading {count} pages of the snapshot from page {} on", range.start))?;
        let mut offers = Offers::new(range.clone());
        while let Some(offer) = offers.next() {
            let removed = self.removed.read().unwrap_or_else(PoisonError::into_inner);
            if removed.has(offer.start) {
                drop(removed);
                // Nobody waits for a page that was given back, but for the one.
                if wanted == Some(offer.start) {
                    self.place_zeros(offer.start..offer.start + 1)?;
                }
                offers.skip();
                continue;
            }
            let alike = removed.alike(offer.clone());
            let from = ((offer.start - range.start) * PAGE) as usize;
            let content = &buffer[from..from + (alike * PAGE) as usize];
            let outcome = self.userfault.copy(self.address_of(offer.start)?, content)?;
            drop(removed);
            if let Outcome::Placed(bytes) = outcome {
                add(&self.counts.copied, bytes / PAGE);
            }
            self.settle(&mut offers, outcome, alike)?;
        }
        Ok(())
    }

    /// Zeros, for pages that follow each other in the VMM.
    fn place_zeros(&self, range: Range<u64>) -> Result<(), Stop> {
        let mut offers = Offers::new(range);
        while let Some(offer) = offers.next() {
            let count = offer.end - offer.start;
            let outcome = self.userfault.zero(self.address_of(offer.start)?, count * PAGE)?;
            if let Outcome::Placed(bytes) = outcome {
                add(&self.counts.zeroed, bytes / PAGE);
            }
            self.settle(&mut offers, outcome, count)?;
        }
        Ok(())
    }

    /// Takes note of what became of `count` pages that were offered.
    fn settle(&self, offers: &mut Offers, outcome: Outcome, count: u64) -> Result<(), Stop> {
        match outcome {
            Outcome::Placed(bytes) => offers.advance(bytes / PAGE),
            Outcome::Present => {
                add(&self.counts.present, 1);
                // Whoever placed it has woken who waited then; somebody may have come to wait since.
                self.userfault.wake(self.address_of(offers.position())?)?;
                offers.skip();
            }
            Outcome::Busy => {
                add(&self.counts.retries, 1);
                if self.over.load(Relaxed) {
                    return Err(Stop::Gone);
                }
                if !self.read_messages(false)? {
                    // It was read, and the VMM's thread is about to carry it out.
                    thread::sleep(BREATH);
                }
            }
            // Two mappings: each page for itself, then.
            Outcome::Unmapped if count > 1 => offers.one_by_one(),
            Outcome::Unmapped => {
                // The page is no longer ours to give. Let who waits for it find out.
                self.userfault.wake(self.address_of(offers.position())?)?;
                offers.skip();
            }
            Outcome::NoMemory if offers.tried_for() < PATIENCE_FOR_MEMORY => thread::sleep(BREATH * 20),
            Outcome::NoMemory => {
                let source = io::Error::from(io::ErrorKind::OutOfMemory);
                let action = format!("placing {count} pages from page {} on", offers.position());
                return Err(Failure { action, source }.into());
            }
            Outcome::Gone => return Err(Stop::Gone),
        }
        Ok(())
    }

    fn address_of(&self, page: u64) -> Result<u64, Failure> {
        let none = || Failure::new(format!("finding page {page}"), io::Error::other("no region has it"));
        self.layout.address_of(page).ok_or_else(none)
    }
}

/// What is still to be offered of a stretch of pages.
struct Offers {
    rest: Range<u64>,
    /// So many at once.
    most: u64,
    /// Since when it has made no progress.
    since: Option<Instant>,
}

impl Offers {
    fn new(range: Range<u64>) -> Self {
        Self { rest: range, most: u64::MAX, since: None }
    }

    fn next(&self) -> Option<Range<u64>> {
        let Range { start, end } = self.rest;
        (start < end).then(|| start..end.min(start.saturating_add(self.most)))
    }

    fn position(&self) -> u64 {
        self.rest.start
    }

    fn advance(&mut self, count: u64) {
        self.rest.start += count;
        self.since = None;
    }

    fn skip(&mut self) {
        self.advance(1);
    }

    fn one_by_one(&mut self) {
        self.most = 1;
    }

    fn tried_for(&mut self) -> Duration {
        self.since.get_or_insert_with(Instant::now).elapsed()
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

/// A lock is only held for a moment by code that does not panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
