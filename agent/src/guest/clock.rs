//! A guest's wall clock beside this host's, over a way whose length is not known: the guest has read its clock at some time
//! between the question and the answer, and half way is wrong by half of that at most (F. Cristian, "Probabilistic clock
//! synchronization", 1989).

use std::time::Duration;

use wrenn_proto::envd::v1::StepClockRequest;
use wrenn_proto::envd::v1::guest_client::GuestClient;

use super::{Guest, GuestError, bounded};
use crate::clock::now_ns;
use crate::request_id::RequestId;

/// For a guest that runs: one that does not answer has other troubles than its clock.
pub const CLOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How far a guest's clock is from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// Nanoseconds; negative where the guest's is ahead.
    pub behind_ns: i64,
    /// By how much that may be wrong either way.
    pub margin_ns: i64,
}

impl ClockReading {
    /// Of a clock that was read between two readings of the host's.
    fn between(sent_ns: i64, guest_ns: i64, received_ns: i64) -> Self {
        // The host's own clock may have been set back in between.
        let margin_ns = received_ns.saturating_sub(sent_ns).max(0) / 2;
        Self { behind_ns: (sent_ns + margin_ns).saturating_sub(guest_ns), margin_ns }
    }

    /// By how much the clock has fallen back since an earlier reading, if that can be told.
    pub fn lost_since(self, earlier: Self) -> Option<i64> {
        let lost_ns = self.behind_ns.saturating_sub(earlier.behind_ns);
        (lost_ns.saturating_abs() > self.margin_ns + earlier.margin_ns).then_some(lost_ns)
    }
}

impl Guest {
    /// Where the clock is; none where it cannot be told, which nothing else depends on.
    pub async fn read_clock(&self, id: &RequestId) -> Option<ClockReading> {
        let reading = self.step_clock(0, id, CLOCK_PATIENCE).await;
        reading
            .inspect_err(
                |error| tracing::warn!(error = %crate::report(error), "the guest's clock is not known"),
            )
            .ok()
    }

    /// Makes good for time that the guest has stood still.
    pub async fn give_time(&self, lost_ns: i64, id: &RequestId, within: Duration) {
        if let Err(error) = self.step_clock(lost_ns, id, within).await {
            tracing::warn!(error = %crate::report(&error), lost_ns, "the guest's clock is behind");
        }
    }

    /// Steps the clock by so many nanoseconds, or by none to know where it is.
    pub async fn step_clock(
        &self,
        by_ns: i64,
        id: &RequestId,
        within: Duration,
    ) -> Result<ClockReading, GuestError> {
        let request = self.request(StepClockRequest { by_ns }, id);
        let sent_ns = now_ns();
        let answer = bounded(within, GuestClient::new(self.channel.clone()).step_clock(request)).await?;
        Ok(ClockReading::between(sent_ns, answer.wall_clock_ns, now_ns()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_wrong_by_half_the_way_at_most() {
        let reading = |guest_ns| ClockReading::between(1000, guest_ns, 1040);
        assert_eq!(reading(1020), ClockReading { behind_ns: 0, margin_ns: 20 });
        assert_eq!(reading(1000), ClockReading { behind_ns: 20, margin_ns: 20 });
        assert_eq!(reading(900), ClockReading { behind_ns: 120, margin_ns: 20 });
        assert_eq!(reading(1100), ClockReading { behind_ns: -80, margin_ns: 20 });
        let set_back = ClockReading::between(1000, 900, 500);
        assert_eq!(set_back, ClockReading { behind_ns: 100, margin_ns: 0 });
    }

    #[test]
    fn a_loss_is_told_if_it_is_more_than_what_two_readings_may_be_wrong_by() {
        let reading = |behind_ns| ClockReading { behind_ns, margin_ns: 10 };
        // A guest may have set its clock itself.
        let hour = 3_600_000_000_000;
        for own in [0, hour, -hour] {
            assert_eq!(reading(own + 20).lost_since(reading(own)), None);
            assert_eq!(reading(own + 21).lost_since(reading(own)), Some(21));
            assert_eq!(reading(own - 21).lost_since(reading(own)), Some(-21));
        }
    }
}
