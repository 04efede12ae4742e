//! The memory of a running guest: what its VMM says about it, and how pages get there.
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
        Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
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
    layout::Layout,
    pages::{Pages, Removed},
    source::PAGE,
    userfault::{Message, Outcome, Userfault},
};
use crate::failure::{Doing as _, Failure};

/// How long a page that the host has no room for is tried again.
const PATIENCE_FOR_MEMORY: Duration = Duration::from_secs(10);
/// Between two tries of what only another thread's progress can make possible.
const BREATH: Duration = Duration::from_micros(50);

/// Why nothing more can be placed.
pub enum Stop {
    /// The VMM has ended.
    Gone,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Whether pages that are about to be placed are there already, as far as is known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Present {
    Not,
    /// One that is ends it: only the first is needed.
    MayBe,
}

/// In pages, but for `retries`.
#[derive(Default)]
pub struct Counts {
    pub copied: AtomicU64,
    pub zeroed: AtomicU64,
    pub removed: AtomicU64,
    pub present: AtomicU64,
    pub retries: AtomicU64,
}

pub struct GuestMemory {
    userfault: Userfault,
    pub layout: Layout,
    pub pages: Pages,
    removed: RwLock<Removed>,
    /// Pages that somebody waits for, of messages that were read.
    waiting: Mutex<VecDeque<u64>>,
    /// Counts what is in `waiting` for threads that sleep.
    more: EventFd,
    pub counts: Counts,
}

impl GuestMemory {
    /// `count` is how many pages the snapshot has.
    pub fn new(userfault: Userfault, layout: Layout, count: u64) -> Result<Self, Failure> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
        Ok(Self {
            userfault,
            layout,
            pages: Pages::new(count),
            removed: RwLock::new(Removed::new(count)),
            waiting: Mutex::default(),
            more: EventFd::from_flags(flags).doing(|| "making an event descriptor")?,
            counts: Counts::default(),
        })
    }

    /// What a thread that has nothing to do waits for.
    pub fn idle(&self) -> Result<Idle, Failure> {
        let doing = || "making an epoll descriptor";
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing(doing)?;
        // One thread is enough for one event.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, 0);
        epoll.add(&self.userfault, event).doing(doing)?;
        epoll.add(&self.more, event).doing(doing)?;
        Ok(Idle(epoll))
    }

    /// Sleeps until there may be a fault for this thread.
    pub fn wait(&self, idle: &Idle) -> Result<(), Failure> {
        match idle.0.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(|| "waiting for faults"),
        }
        // Fails if another thread was quicker.
        let _ = self.more.read();
        self.read_messages(true).map(drop)
    }

    /// A page that somebody waits for, as far as messages were read.
    pub fn next_fault(&self) -> Option<u64> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Reads messages if there are any.
    pub fn look(&self) -> Result<(), Failure> {
        let mut wanted = [PollFd::new(self.userfault.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, PollTimeout::ZERO) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) => self.read_messages(true).map(drop),
            Err(errno) => Err(errno).doing(|| "looking for faults"),
        }
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
                            self.counts.removed.fetch_add(range.end - range.start, Relaxed);
                            removed.add(range.clone());
                            self.pages.withdraw(range);
                        }
                    }
                }
            }
            !messages.is_empty()
        };
        let new = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let before = waiting.len();
            for page in faults {
                // One answer is enough for all who wait for a page, if it is still to come.
                if !waiting.contains(&page) {
                    waiting.push_back(page);
                }
            }
            waiting.len() - before
        };
        let for_others = new.saturating_sub(usize::from(takes_one)) as u64;
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

    fn address_of(&self, page: u64) -> Result<u64, Failure> {
        let none = || Failure::new(format!("finding page {page}"), io::Error::other("no region has it"));
        self.layout.address_of(page).ok_or_else(none)
    }

    fn removed(&self) -> RwLockReadGuard<'_, Removed> {
        self.removed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many pages from the start of `range` on were given back.
    pub fn removed_from(&self, range: Range<u64>) -> u64 {
        let removed = self.removed();
        if removed.has(range.start) { removed.alike(range) } else { 0 }
    }

    /// Places content of the snapshot, for pages that follow each other in the VMM. `wanted` is one that
    /// somebody waits for: it is there afterwards in any case.
    pub fn place(&self, range: Range<u64>, wanted: Option<u64>, content: &[u8]) -> Result<(), Stop> {
        let mut offers = Offers::new(range.clone());
        while let Some(offer) = offers.next() {
            let removed = self.removed();
            if removed.has(offer.start) {
                drop(removed);
                // Nobody waits for a page that was given back, but for the one.
                if wanted == Some(offer.start) {
                    self.place_zeros(offer.start..offer.start + 1, Present::Not)?;
                }
                offers.skip();
                continue;
            }
            let alike = removed.alike(offer.clone());
            let from = ((offer.start - range.start) * PAGE) as usize;
            let content = &content[from..from + (alike * PAGE) as usize];
            let outcome = self.userfault.copy(self.address_of(offer.start)?, content)?;
            drop(removed);
            if let Outcome::Placed(bytes) = outcome {
                self.counts.copied.fetch_add(bytes / PAGE, Relaxed);
            }
            self.settle(&mut offers, outcome, alike)?;
        }
        Ok(())
    }

    /// Places zeros, for pages that follow each other in the VMM.
    pub fn place_zeros(&self, range: Range<u64>, others: Present) -> Result<(), Stop> {
        let first = range.start;
        let mut offers = Offers::new(range);
        while let Some(offer) = offers.next() {
            let count = offer.end - offer.start;
            let outcome = self.userfault.zero(self.address_of(offer.start)?, count * PAGE)?;
            if let Outcome::Placed(bytes) = outcome {
                self.counts.zeroed.fetch_add(bytes / PAGE, Relaxed);
            }
            if outcome == Outcome::Present && others == Present::MayBe && offer.start > first {
                return Ok(());
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
                self.counts.present.fetch_add(1, Relaxed);
                // Whoever placed it has woken who waited then; somebody may have come to wait since.
                self.userfault.wake(self.address_of(offers.position())?)?;
                offers.skip();
            }
            Outcome::Busy => {
                self.counts.retries.fetch_add(1, Relaxed);
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
}

/// Of one thread.
pub struct Idle(Epoll);

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
