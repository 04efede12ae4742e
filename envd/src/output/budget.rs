//! What all output together may occupy.
//!
//! A ring doubles when it is full. What that takes is free or comes from others: from those first whose output counts
//! least ([`Rank`]), of equals from the largest, who is left with no less than who takes gets. Where nothing can be had
//! the ring stays as it is: what nobody reads is overwritten earlier, and a process that is read waits for its reader
//! earlier. What a reader still has to get is never taken.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use super::{MOST, State, Stream, lock};

/// What all rings together occupy, in bytes. A stream's first 4 KiB are there for it whatever the others have.
pub const LIMIT: usize = 6 << 20;
/// What a stream is left for the sake of those that count for more, in bytes; less if all want so little.
pub const LEAST: usize = 64 * 1024;

/// The outputs that share one limit.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    outputs: Mutex<Vec<Weak<Mutex<State>>>>,
}

/// What counts least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// All has ended, and nobody has read of it within the reconnect grace.
    Settled,
    /// Not used for as long.
    Quiet,
    Unread,
    /// Somebody reads it, or may be on the way back.
    Read,
}

/// What one stream has.
struct Share {
    output: Arc<Mutex<State>>,
    stream: usize,
    rank: Rank,
    used: Instant,
    size: usize,
    least: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

impl Budget {
    pub fn new(limit: usize) -> Self {
        Self { limit, outputs: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Mutex<State>>>> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, output: &Arc<Mutex<State>>) {
        let mut outputs = self.lock();
        // A ring that never grows asks for nothing, and would not be missed.
        outputs.retain(|it| it.strong_count() > 0);
        outputs.push(Arc::downgrade(output));
    }

    /// Doubles the ring of a stream, if what that takes can be had.
    pub(super) fn enlarge(&self, output: &Arc<Mutex<State>>, stream: usize) {
        let now = Instant::now();
        // Held to the end, so that of two that take the second sees what is left.
        let mut outputs = self.lock();
        let mut occupied = 0;
        outputs.retain(|it| {
            it.upgrade().is_some_and(|it| {
                let state = lock(&it);
                occupied += state.footprint();
                !state.is_over()
            })
        });
        let (rank, from) = {
            let state = lock(output);
            let Some(it) = state.streams.get(stream) else { return };
            (state.rank(now), it.ring.footprint())
        };
        let to = (2 * from).min(MOST);
        let missing = (occupied + to).saturating_sub(self.limit + from);
        if missing > 0 {
            let outputs = outputs.iter().filter_map(Weak::upgrade);
            let mut shares: Vec<_> = outputs.flat_map(|it| shares(&it, rank, to, now)).collect();
            if !take_all(&mut shares, missing, now) {
                return;
            }
        }
        if let Some(it) = lock(output).streams.get_mut(stream) {
            it.ring.resize(to);
        }
    }
}

/// Takes so many bytes, or none if there are not so many to be taken.
fn take_all(shares: &mut [Share], missing: usize, now: Instant) -> bool {
    if shares.iter().map(|it| it.size.saturating_sub(it.least)).sum::<usize>() < missing {
        return false;
    }
    shares.sort_unstable_by_key(Share::order);
    // Nobody is brought below that as long as others have more.
    let missing = take(shares, missing, LEAST, now);
    take(shares, missing, 0, now) == 0
}

/// Takes so many bytes from who has more than `floor`; returns how many are still missing.
fn take(shares: &mut [Share], mut missing: usize, floor: usize, now: Instant) -> usize {
    for equals in shares.chunk_by_mut(|one, other| one.rank == other.rank) {
        while missing > 0 && equals.iter().any(|it| it.size > it.rest(floor)) {
            for share in equals.iter_mut().filter(|it| it.size > it.rest(floor)) {
                if missing > 0 {
                    missing = missing.saturating_sub(share.cut(floor, now));
                }
            }
        }
    }
    missing
}

/// The streams of an output, of which one of that rank wants a size.
fn shares(output: &Arc<Mutex<State>>, claimant: Rank, wanted: usize, now: Instant) -> Vec<Share> {
    let state = lock(output);
    let rank = state.rank(now);
    let least = rank.left_for(claimant, wanted);
    let streams = state.streams.iter().enumerate();
    let share = |(stream, it): (usize, &Stream)| Share {
        output: Arc::clone(output),
        stream,
        rank,
        used: state.used,
        size: it.ring.footprint(),
        least: least.max(state.owed(stream, now)),
    };
    streams.map(share).collect()
}

impl Share {
    /// Who gives first: of what has ended the oldest, of the others the largest.
    fn order(&self) -> (Rank, Reverse<usize>, Instant) {
        let size = if self.rank == Rank::Settled { 0 } else { self.size };
        (self.rank, Reverse(size), self.used)
    }

    /// What it is left at least.
    fn rest(&self, floor: usize) -> usize {
        if self.rank == Rank::Settled { self.least } else { self.least.max(floor) }
    }

    /// Takes half of it, or all of what has ended, but no more than may be taken; returns how much that was.
    fn cut(&mut self, floor: usize, now: Instant) -> usize {
        let half = if self.rank == Rank::Settled { 0 } else { self.size / 2 };
        let rest = half.max(self.rest(floor));
        let left = lock(&self.output).cut(self.stream, rest, now);
        if left > rest {
            // A reader has come.
            self.least = left;
        }
        std::mem::replace(&mut self.size, left).saturating_sub(left)
    }
}

impl Rank {
    /// What is left to a stream of this rank when one of rank `claimant` wants `wanted` bytes.
    fn left_for(self, claimant: Self, wanted: usize) -> usize {
        use std::cmp::Ordering as Order;
        match self.cmp(&claimant) {
            _ if self == Self::Settled => 0,
            _ if wanted <= LEAST => wanted,
            Order::Less => LEAST,
            Order::Equal => wanted,
            Order::Greater => usize::MAX,
        }
    }
}

impl State {
    fn rank(&self, now: Instant) -> Rank {
        let lately = now.duration_since(self.used) < self.grace;
        let owes = (0..self.streams.len()).any(|stream| self.owed(stream, now) > 0);
        let read = !self.readers.is_empty() || self.hold(now).is_some();
        match (read, lately) {
            (true, _) if lately || owes => Rank::Read,
            (false, true) => Rank::Unread,
            (false, false) if self.streams.iter().all(|it| it.ended) => Rank::Settled,
            _ => Rank::Quiet,
        }
    }

    /// Bytes that the rings occupy.
    fn footprint(&self) -> usize {
        self.streams.iter().map(|it| it.ring.footprint()).sum()
    }

    /// Nothing is held and nothing more comes.
    fn is_over(&self) -> bool {
        self.streams.iter().all(|it| it.ended && it.ring.footprint() == 0)
    }
}
