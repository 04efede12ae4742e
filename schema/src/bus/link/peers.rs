//! What is known of the other replicas: whether something of theirs was missed, and whether they are heard at all.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

#[derive(Debug)]
struct Peer {
    /// Changes it has told so far.
    told: u64,
    heard: Instant,
}

/// The other replicas, by what they have said.
#[derive(Debug)]
pub(super) struct Peers {
    /// Who is silent for so long is cut off from here, unless it is dead: then somebody else answers for what it did.
    silence: Duration,
    /// Who is silent for so long is taken for dead.
    forget: Duration,
    known: HashMap<Uuid, Peer>,
}

impl Peers {
    pub(super) fn new(silence: Duration, forget: Duration) -> Self {
        Self { silence, forget, known: HashMap::new() }
    }

    /// Notes what one has said of itself: the number of its changes, with the one that it tells just now. False: some
    /// were not heard.
    pub(super) fn heard(&mut self, from: Uuid, told: u64, tells: bool, now: Instant) -> bool {
        let before = told - u64::from(tells && told > 0);
        let peer = self.known.entry(from).or_insert(Peer { told: 0, heard: now });
        let whole = peer.told >= before;
        peer.told = peer.told.max(told);
        peer.heard = now;
        whole
    }

    pub(super) fn left(&mut self, from: Uuid) {
        self.known.remove(&from);
    }

    /// Whether somebody is silent who may have much to tell.
    pub(super) fn any_silent(&mut self, now: Instant) -> bool {
        self.known.retain(|_, peer| now - peer.heard < self.forget);
        self.known.values().any(|peer| now - peer.heard > self.silence)
    }

    /// While nobody could be heard nobody was silent.
    pub(super) fn back(&mut self, now: Instant) {
        self.known.values_mut().for_each(|peer| peer.heard = now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn gaps_are_noticed_by_the_next_word() {
        let (mut peers, now, one) = (Peers::new(6 * SECOND, 60 * SECOND), Instant::now(), Uuid::now_v7());
        assert!(peers.heard(one, 1, true, now));
        assert!(peers.heard(one, 1, false, now));
        assert!(!peers.heard(one, 3, true, now), "2 was missed");
        assert!(peers.heard(one, 3, false, now), "and is told once");
        assert!(!peers.heard(one, 4, false, now), "the last one was lost");
        assert!(peers.heard(one, 2, true, now), "late is not lost");
        let early = Uuid::now_v7();
        assert!(!peers.heard(early, 7, false, now), "it had told some before it was known");
    }

    #[test]
    fn silence_is_noticed_until_it_is_taken_for_death() {
        let (mut peers, start, one) = (Peers::new(6 * SECOND, 60 * SECOND), Instant::now(), Uuid::now_v7());
        peers.heard(one, 0, false, start);
        assert!(!peers.any_silent(start + 6 * SECOND));
        assert!(peers.any_silent(start + 7 * SECOND));
        peers.back(start + 7 * SECOND);
        assert!(!peers.any_silent(start + 13 * SECOND) && peers.any_silent(start + 14 * SECOND));
        assert!(!peers.any_silent(start + 67 * SECOND), "forgotten");
        peers.heard(one, 0, false, start);
        peers.left(one);
        assert!(!peers.any_silent(start + 30 * SECOND), "it said farewell");
    }
}
