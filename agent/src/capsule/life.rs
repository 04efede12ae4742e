//! One life of a capsule: from the moment it is served to the moment its vCPUs stop.
//!
//! Whatever is open into a guest holds the life, and ends when it does.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use super::view::Cause;
use crate::guest::Guest;

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
}

/// The way into a running capsule, for calls that do not change its state: they never queue behind
/// the driver.
#[derive(Debug, Clone)]
pub struct RunningHandle {
    pub guest: Guest,
    pub life: Life,
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
}
