//! One life of a capsule: from the moment it is served to the moment its vCPUs stop.
//!
//! Whatever is open into a guest holds the life, and ends when it does.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use wrenn_vmm::process::VmmProcess;

use super::view::Cause;
use crate::guest::Guest;
use crate::proxy::Upstream;

/// How soon after its connections the end of a life is known.
const END_FOLLOWS: Duration = Duration::from_millis(1500);

/// How a life ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LifeEnd {
    /// With its processes: there is nothing to come back to.
    Lost(Cause),
    /// Frozen: the processes go on in the next life.
    Paused,
    /// The agent stops serving; the capsule itself goes on.
    AgentStopping,
}

/// Shared by all who take part in a life.
#[derive(Debug, Clone, Default)]
pub struct Life(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    over: CancellationToken,
    end: OnceLock<LifeEnd>,
    /// Requests that a pause waits for a little.
    in_flight: TaskTracker,
    upstream: OnceLock<Upstream>,
}

impl Life {
    /// Ends it; the first end counts.
    pub fn end(&self, end: LifeEnd) {
        let _first = self.0.end.set(end);
        self.0.over.cancel();
    }

    /// Waits for the end.
    pub async fn ended(&self) -> LifeEnd {
        self.0.over.cancelled().await;
        self.0.end.get().cloned().unwrap_or(LifeEnd::Paused)
    }

    pub fn is_over(&self) -> bool {
        self.0.over.is_cancelled()
    }

    /// The end of it, if that is what just broke a connection into the guest.
    pub async fn end_behind_it(&self) -> Option<LifeEnd> {
        tokio::time::timeout(END_FOLLOWS, self.ended()).await.ok()
    }

    /// A request that should come to its end before the life does, for as long as the token is held.
    pub fn in_flight(&self) -> TaskTrackerToken {
        self.0.in_flight.token()
    }

    /// Lets the requests in flight come to their end, but waits no longer than `patience`. Called when no new ones
    /// are let in any more.
    pub async fn drain(&self, patience: Duration) {
        self.0.in_flight.close();
        if tokio::time::timeout(patience, self.0.in_flight.wait()).await.is_err() {
            tracing::debug!(left = self.0.in_flight.len(), "requests in flight are cut off");
        }
    }
}

/// The way into a running capsule, for calls that do not change its state: they never queue behind
/// the driver.
#[derive(Debug, Clone)]
pub struct RunningHandle {
    pub guest: Guest,
    pub life: Life,
    pub vmm: VmmProcess,
}

impl RunningHandle {
    /// The connections to the guest's own services, which end with the life.
    pub fn upstream(&self) -> &Upstream {
        let life = &self.life.0;
        life.upstream.get_or_init(|| Upstream::new(self.guest.address(), life.over.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everyone_learns_the_first_end() {
        let life = Life::default();
        let other = life.clone();
        let waiter = tokio::spawn(async move { other.ended().await });
        life.end(LifeEnd::Lost(Cause::new("VMM_DIED", "signal 9")));
        life.end(LifeEnd::Paused);
        assert_eq!(waiter.await.unwrap(), LifeEnd::Lost(Cause::new("VMM_DIED", "signal 9")));
        assert!(life.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_in_flight_are_waited_for_but_not_for_long() {
        const PATIENCE: Duration = Duration::from_secs(2);
        let life = Life::default();
        let began = tokio::time::Instant::now();
        life.drain(PATIENCE).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "nothing to wait for");

        let request = life.in_flight();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(request);
        });
        life.drain(PATIENCE).await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));

        let _stuck = life.in_flight();
        life.drain(PATIENCE).await;
        assert_eq!(began.elapsed(), Duration::from_secs(3));
    }
}
