//! Whether the peer is still there.
//!
//! A peer that has taken everything must answer one of two pings in a row. One that has frames waiting
//! for it cannot answer (the ping lies behind them in the socket), so it is given until the stall
//! timeout to take *something*: holding a stream back for minutes is a reader's right.

use tokio::time::{Duration, Instant};

/// Pings in a row that may stay unanswered.
const MAX_UNANSWERED: u32 = 2;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ping,
    Dead,
}

#[derive(Debug)]
pub(super) struct Liveness {
    stall_timeout: Duration,
    last_heard: Instant,
    unanswered: u32,
}

impl Liveness {
    pub(super) fn new(stall_timeout: Duration, now: Instant) -> Self {
        Self { stall_timeout, last_heard: now, unanswered: 0 }
    }

    /// Any frame came in.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.unanswered = 0;
    }

    /// One ping interval has passed; `waiting_since` is when the peer last took a frame, if any wait.
    pub(super) fn tick(&mut self, now: Instant, waiting_since: Option<Instant>) -> Verdict {
        match waiting_since {
            Some(taken) if now - self.last_heard.max(taken) > self.stall_timeout => Verdict::Dead,
            Some(_) => Verdict::Ping,
            None if self.unanswered >= MAX_UNANSWERED => Verdict::Dead,
            None => {
                self.unanswered += 1;
                Verdict::Ping
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn two_unanswered_pings_are_the_end() {
        let start = Instant::now();
        let mut liveness = Liveness::new(10 * SECOND, start);
        assert_eq!(liveness.tick(start + SECOND, None), Verdict::Ping);
        assert_eq!(liveness.tick(start + 2 * SECOND, None), Verdict::Ping);
        liveness.heard(start + 3 * SECOND);
        assert_eq!(liveness.tick(start + 3 * SECOND, None), Verdict::Ping);
        assert_eq!(liveness.tick(start + 4 * SECOND, None), Verdict::Ping);
        assert_eq!(liveness.tick(start + 5 * SECOND, None), Verdict::Dead);
    }

    #[test]
    fn a_reader_that_holds_back_is_given_the_stall_timeout() {
        let start = Instant::now();
        let mut liveness = Liveness::new(10 * SECOND, start);
        let taken = start + 5 * SECOND;
        for second in 6..=15 {
            assert_eq!(liveness.tick(start + second * SECOND, Some(taken)), Verdict::Ping);
        }
        assert_eq!(liveness.tick(start + 16 * SECOND, Some(taken)), Verdict::Dead);
        liveness.heard(start + 16 * SECOND);
        assert_eq!(liveness.tick(start + 17 * SECOND, Some(taken)), Verdict::Ping);
    }
}
