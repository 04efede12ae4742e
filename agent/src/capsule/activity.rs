//! What keeps a capsule awake: calls into it, and streams attached to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Shared by the driver, which reads the deadline, and by everyone who uses the capsule.
#[derive(Debug)]
pub struct Activity {
    epoch: Instant,
    /// Milliseconds after `epoch`.
    last: AtomicI64,
    attached: AtomicUsize,
    detached: Notify,
}

impl Activity {
    /// Active last that long ago.
    pub fn idle_since(idle: Duration) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            epoch: now.checked_sub(idle).unwrap_or(now),
            last: AtomicI64::new(0),
            attached: AtomicUsize::new(0),
            detached: Notify::new(),
        })
    }

    /// A single sign of use.
    pub fn touch(&self) {
        let now = i64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    /// Use for as long as the guard lives.
    pub fn attach(self: &Arc<Self>) -> Attached {
        self.attached.fetch_add(1, Ordering::Relaxed);
        self.touch();
        Attached(self.clone())
    }

    /// The last sign of use, nanoseconds since the Unix epoch.
    pub fn last_ns(&self) -> i64 {
        let idle =
            if self.attached.load(Ordering::Relaxed) > 0 { Duration::ZERO } else { self.last().elapsed() };
        crate::clock::now_ns() - i64::try_from(idle.as_nanos()).unwrap_or(0)
    }

    fn last(&self) -> Instant {
        self.epoch + Duration::from_millis(self.last.load(Ordering::Relaxed).try_into().unwrap_or(0))
    }

    /// Returns once there was no activity for `timeout`.
    pub async fn idle_for(&self, timeout: Duration) {
        loop {
            let detached = self.detached.notified();
            if self.attached.load(Ordering::Relaxed) > 0 {
                detached.await;
                continue;
            }
            let deadline = self.last() + timeout;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

/// Keeps the capsule awake until dropped.
#[derive(Debug)]
pub struct Attached(Arc<Activity>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.touch();
        if self.0.attached.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.detached.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    async fn idle_after(activity: &Activity) -> Duration {
        let start = Instant::now();
        activity.idle_for(TIMEOUT).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_last_touch() {
        let activity = Activity::idle_since(Duration::ZERO);
        assert_eq!(idle_after(&activity).await, TIMEOUT);
        activity.touch();
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(idle_after(&activity).await, Duration::from_secs(40));
    }

    #[tokio::test(start_paused = true)]
    async fn a_touch_while_waiting_moves_the_deadline() {
        let activity = Activity::idle_since(Duration::ZERO);
        let toucher = activity.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(50)).await;
            toucher.touch();
        });
        assert_eq!(idle_after(&activity).await, Duration::from_secs(110));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attached_stream_is_activity_to_its_end() {
        let activity = Activity::idle_since(Duration::ZERO);
        let attached = activity.attach();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            drop(attached);
        });
        assert_eq!(idle_after(&activity).await, Duration::from_secs(1060));
    }
}
