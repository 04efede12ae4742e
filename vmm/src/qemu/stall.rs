//! vCPUs that QEMU has stopped by itself, because a write to the disk found no room on the host.
//!
//! QEMU keeps the write and tries it again when the vCPUs go on. It does not look for room: somebody has to let them.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::qmp::{Qmp, RunState};

/// Between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// By then an attempt has come to nothing, if it does: until it is known that it has not the guest's clock is behind.
const SETTLED: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub struct Stall {
    since: Instant,
    /// When the vCPUs were last let go on.
    tried: Instant,
}

impl Stall {
    pub fn since(since: Instant) -> Self {
        Self { since, tried: since }
    }

    /// Waits for one. Never answers of a QEMU that has ended.
    pub async fn begins(qmp: &mut Qmp) -> Self {
        loop {
            let Ok(since) = qmp.until_stopped().await else { return pending().await };
            if let Ok(RunState::IoError) = qmp.status().await {
                return Self::since(since);
            }
            sleep(RETRY).await;
        }
    }

    /// Tries until the vCPUs still run after an attempt. Answers how long they stood still.
    pub async fn outlast(&mut self, qmp: &mut Qmp) -> Duration {
        loop {
            sleep_until(self.tried + SETTLED).await;
            let state = qmp.status().await;
            if let Ok(RunState::Running) = state {
                return self.tried - self.since;
            }
            sleep_until(self.tried + RETRY).await;
            self.tried = Instant::now();
            // Whatever else it is, or that QEMU does not answer now, may be over the next time.
            if let Ok(RunState::IoError) = state
                && let Err(error) = qmp.resume().await
            {
                tracing::debug!(error = &error as &dyn std::error::Error, "the guest was not let go on");
            }
        }
    }
}
