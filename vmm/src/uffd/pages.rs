//! Which pages were offered to the guest, and which to offer next.
//!
//! Nothing in here decides whether a fault is answered, or with what content: only which of the page's
//! neighbours go with it. A page is *claimed* once, by whoever will put it there.

use std::{
    ops::Range,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

/// So many pages are read and placed in one go: 128 KiB, about a tenth of a millisecond, for which a fault that
/// comes meanwhile may have to wait.
pub const STEP: u64 = 32;
/// What goes with the first fault in a chunk: 64 KiB, as the kernel does for a file's pages.
const NEAR: u64 = 16;
/// What goes with the second.
const WIDER: u64 = 64;
/// Unit of looking for locality, and the most that goes with one fault: 2 MiB.
pub const CHUNK: u64 = 512;

/// What to do about a fault.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// To be placed at once; holds the faulting page.
    pub now: Range<u64>,
    /// To be claimed and placed when no fault waits, in this order.
    pub later: Vec<Range<u64>>,
}

/// One bit a page. Bits are hints, so no order between them is needed.
pub struct Bits(Vec<AtomicU64>);

impl Bits {
    pub fn new(pages: u64) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether it was not set before.
    pub fn set(&self, page: u64) -> bool {
        let bit = 1 << (page % 64);
        self.0[(page / 64) as usize].fetch_or(bit, Relaxed) & bit == 0
    }

    pub fn clear(&self, page: u64) {
        self.0[(page / 64) as usize].fetch_and(!(1 << (page % 64)), Relaxed);
    }

    pub fn has(&self, page: u64) -> bool {
        self.0[(page / 64) as usize].load(Relaxed) & 1 << (page % 64) != 0
    }
}

/// Pages the VMM has given back. Whatever was there, and whatever the snapshot has: a missing one of them
/// is zeros from then on.
pub struct Removed(Bits);

impl Removed {
    pub fn new(pages: u64) -> Self {
        Self(Bits::new(pages))
    }

    pub fn add(&mut self, range: Range<u64>) {
        for page in range {
            self.0.set(page);
        }
    }

    pub fn has(&self, page: u64) -> bool {
        self.0.has(page)
    }

    /// How many pages from the start of `range` are all removed, or all not.
    pub fn alike(&self, range: Range<u64>) -> u64 {
        let first = self.has(range.start);
        range.clone().take_while(|&page| self.has(page) == first).count() as u64
    }
}

pub struct Pages {
    count: u64,
    /// Put there or about to be, or removed: not to be offered again unasked.
    claimed: Bits,
    /// Claimed and not removed since.
    needed: Bits,
    /// Faults in each chunk so far.
    heat: Vec<AtomicU8>,
}

impl Pages {
    pub fn new(count: u64) -> Self {
        Self {
            count,
            claimed: Bits::new(count),
            needed: Bits::new(count),
            heat: (0..count.div_ceil(CHUNK)).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// A page is asked for. `within` are the pages that follow each other around it in the VMM, `zero` tells
    /// which have no content. Each further fault in a chunk brings more of it: a guest that comes back to a
    /// place will likely want the rest of it.
    pub fn fault(&self, page: u64, within: &Range<u64>, zero: impl Fn(u64) -> bool) -> Plan {
        let around = |size: u64| {
            let start = page - page % size;
            start.max(within.start)..(start + size).min(within.end)
        };
        let near = around(NEAR);
        self.claim(page);
        let like_it = zero(page);
        let goes_with = |other: &u64| zero(*other) == like_it && self.claim(*other);
        let after = (page + 1..near.end).take_while(goes_with).count() as u64;
        let before = (near.start..page).rev().take_while(goes_with).count() as u64;
        let now = page - before..page + 1 + after;

        let heat = &self.heat[(page / CHUNK) as usize];
        let seen = heat.load(Relaxed);
        heat.store(seen.saturating_add(1), Relaxed);
        let window = match seen {
            0 => near,
            1 => around(WIDER),
            2 => around(CHUNK),
            // All of the chunk is listed by now.
            _ => near,
        };
        // On from the fault, then what lies before it.
        let later = steps(now.end..window.end).chain(steps(window.start..now.start)).collect();
        Plan { now, later }
    }

    /// Claims what is left of `range`: stretches of pages that are all zero or all not, with which it is.
    pub fn take(&self, range: Range<u64>, zero: impl Fn(u64) -> bool) -> Vec<(Range<u64>, bool)> {
        let mut taken: Vec<(Range<u64>, bool)> = Vec::new();
        for page in range.start..range.end.min(self.count) {
            if !self.claim(page) {
                continue;
            }
            let is_zero = zero(page);
            match taken.last_mut() {
                Some((last, kind)) if last.end == page && *kind == is_zero => last.end += 1,
                _ => taken.push((page..page + 1, is_zero)),
            }
        }
        taken
    }

    /// The VMM has given these back: nobody needs them, until somebody asks.
    pub fn withdraw(&self, range: Range<u64>) {
        for page in range {
            self.claimed.set(page);
            self.needed.clear(page);
        }
    }

    /// What this restore needed so far, in order and apart. Nobody can tell whether a page that was prefetched
    /// would have been asked for, so it is among them.
    pub fn needed(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in (0..self.count).filter(|&page| self.needed.has(page)) {
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => ranges.push(page..page + 1),
            }
        }
        ranges
    }

    fn claim(&self, page: u64) -> bool {
        let claimed = self.claimed.set(page);
        if claimed {
            self.needed.set(page);
        }
        claimed
    }
}

/// Cuts a range into what is done in one go.
pub fn steps(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(STEP as usize).map(move |start| start..(start + STEP).min(end))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const COUNT: u64 = 3 * CHUNK + 100;

    #[test]
    fn each_further_fault_in_a_chunk_brings_more() {
        let pages = Pages::new(COUNT);
        let fault = |page| pages.fault(page, &(0..COUNT), |_| false);
        assert_eq!(fault(40), Plan { now: 32..48, later: vec![] });
        assert_eq!(fault(100), Plan { now: 96..112, later: vec![112..128, 64..96] });
        let third = fault(300);
        assert_eq!(third.now, 288..304);
        let later: u64 = third.later.iter().map(|range| range.end - range.start).sum();
        assert_eq!(later, CHUNK - NEAR);
        // Other chunks are cold.
        assert_eq!(fault(CHUNK).later, []);
    }

    #[test]
    fn a_page_that_is_asked_for_twice_is_answered_twice() {
        let pages = Pages::new(COUNT);
        pages.fault(40, &(0..COUNT), |_| false);
        assert_eq!(pages.fault(40, &(0..COUNT), |_| false).now, 40..41);
    }

    #[test]
    fn what_was_given_back_is_not_needed() {
        let pages = Pages::new(1000);
        pages.take(100..300, |_| false);
        pages.fault(400, &(0..1000), |_| false);
        assert_eq!(pages.needed(), [100..300, 400..416]);
        pages.withdraw(200..410);
        assert_eq!(pages.needed(), [100..200, 410..416]);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Fault(u64),
        Prefetch(Range<u64>),
        Remove(Range<u64>),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let range = (0..COUNT, 1..80_u64).prop_map(|(start, length)| start..(start + length).min(COUNT));
        let event = prop_oneof![
            3 => (0..COUNT).prop_map(Event::Fault),
            1 => range.clone().prop_map(Event::Prefetch),
            1 => range.prop_map(Event::Remove),
        ];
        proptest::collection::vec(event, 1..100)
    }

    proptest! {
        #[test]
        fn no_page_is_offered_twice_and_none_but_of_its_kind(
            events in events(),
            holes in proptest::collection::btree_set(0..COUNT / 8, 0..100),
            boundary in 1..COUNT,
        ) {
            let zero = |page: u64| holes.contains(&(page / 8));
            let pages = Pages::new(COUNT);
            let mut offered = BTreeSet::new();
            for event in events {
                match event {
                    Event::Fault(page) => {
                        let within = if page < boundary { 0..boundary } else { boundary..COUNT };
                        let plan = pages.fault(page, &within, zero);
                        prop_assert!(plan.now.contains(&page));
                        prop_assert!(plan.now.end - plan.now.start <= NEAR);
                        for other in plan.now {
                            prop_assert!(within.contains(&other));
                            prop_assert_eq!(zero(other), zero(page));
                            prop_assert!(offered.insert(other) || other == page, "{} twice", other);
                        }
                        for range in plan.later {
                            prop_assert!(range.end - range.start <= STEP);
                            prop_assert!(within.contains(&range.start) && range.end <= within.end);
                            prop_assert_eq!(range.start / CHUNK, page / CHUNK);
                            for (taken, kind) in pages.take(range, zero) {
                                for other in taken {
                                    prop_assert!(offered.insert(other), "{} twice", other);
                                    prop_assert_eq!(zero(other), kind);
                                }
                            }
                        }
                    }
                    Event::Prefetch(range) => {
                        for (taken, kind) in pages.take(range.clone(), zero) {
                            for other in taken {
                                prop_assert!(range.contains(&other) && offered.insert(other));
                                prop_assert_eq!(zero(other), kind);
                            }
                        }
                        for page in range {
                            prop_assert!(offered.contains(&page), "{} was left out", page);
                        }
                    }
                    Event::Remove(range) => {
                        pages.withdraw(range.clone());
                        offered.extend(range);
                    }
                }
            }
            // What is recorded was offered, in order and apart.
            let needed = pages.needed();
            for pair in needed.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            for page in needed.into_iter().flatten() {
                prop_assert!(offered.contains(&page));
            }
        }

        #[test]
        fn steps_are_the_whole_in_order(start in 0..5000_u64, length in 0..500_u64) {
            let all: Vec<u64> = steps(start..start + length).flatten().collect();
            prop_assert_eq!(all, (start..start + length).collect::<Vec<_>>());
        }

        #[test]
        fn a_removed_page_stays_removed(ranges in proptest::collection::vec((0..500_u64, 0..60_u64), 0..20)) {
            let mut removed = Removed::new(600);
            let mut model = BTreeSet::new();
            for (start, length) in ranges {
                removed.add(start..start + length);
                model.extend(start..start + length);
            }
            let mut page = 0;
            while page < 600 {
                let alike = removed.alike(page..600);
                prop_assert!(alike > 0);
                for other in page..page + alike {
                    prop_assert_eq!(model.contains(&other), removed.has(page));
                }
                page += alike;
            }
        }
    }
}
