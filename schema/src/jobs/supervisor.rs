//! Runs the jobs: again after their period, with growing pauses after panics, until stopped.
//!
//! An error is shown and changes nothing else: one host that is away must not slow down what is done for the others.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wrenn_entities::time::now;

use super::{Job, all};
use crate::Services;

/// The longest pause after panics in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How a job fares.
#[derive(Clone, Debug, Default, Serialize)]
pub struct JobStatus {
    pub name: &'static str,
    pub period_ms: u64,
    pub running: bool,
    pub runs: u64,
    /// Errors and panics.
    pub failures: u64,
    pub last_started_at: Option<DateTime<Utc>>,
    pub last_finished_at: Option<DateTime<Utc>>,
    pub last_duration_ms: Option<u64>,
    /// Of the last run; none when that went well.
    pub last_error: Option<String>,
}

struct Supervised {
    job: Arc<dyn Job>,
    status: Arc<Mutex<JobStatus>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// All jobs of this process.
pub struct Supervisor {
    jobs: Vec<Supervised>,
}

impl Supervisor {
    /// Starts all jobs.
    #[must_use]
    pub fn start(services: &Arc<Services>) -> Self {
        Self::run(all(services))
    }

    pub(super) fn run(jobs: Vec<Arc<dyn Job>>) -> Self {
        let jobs = jobs
            .into_iter()
            .map(|job| {
                let status = Arc::new(Mutex::new(JobStatus {
                    name: job.name(),
                    period_ms: millis(job.period()),
                    ..JobStatus::default()
                }));
                let stop = CancellationToken::new();
                let task = tokio::spawn(keep_running(job.clone(), status.clone(), stop.clone()));
                Supervised { job, status, stop, task: Mutex::new(Some(task)) }
            })
            .collect();
        Self { jobs }
    }

    /// How each job fares.
    #[must_use]
    pub fn status(&self) -> Vec<JobStatus> {
        self.jobs.iter().map(|supervised| lock(&supervised.status).clone()).collect()
    }

    /// Stops the jobs one after the other, the last started first, letting each end its round.
    pub async fn stop(&self) {
        for supervised in self.jobs.iter().rev() {
            supervised.stop.cancel();
            let task = supervised.task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task
                && let Err(error) = task.await
            {
                tracing::error!(job = supervised.job.name(), %error, "a job did not end in order");
            }
            supervised.job.finish().await;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn lock(status: &Mutex<JobStatus>) -> std::sync::MutexGuard<'_, JobStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep_running(job: Arc<dyn Job>, status: Arc<Mutex<JobStatus>>, stop: CancellationToken) {
    let mut panics_in_a_row = 0u32;
    while !stop.is_cancelled() {
        let began = Instant::now();
        {
            let mut status = lock(&status);
            status.running = true;
            status.last_started_at = Some(now());
        }
        // In a task of its own, so that a panic ends only this round.
        let round = tokio::spawn({
            let (job, stop) = (job.clone(), stop.clone());
            async move { job.activate(&stop).await }
        });
        let ended = round.await;
        panics_in_a_row = if ended.is_err() { panics_in_a_row.saturating_add(1) } else { 0 };
        let error = match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.chain()),
            Err(panic) => Some(panic.to_string()),
        };
        if let Some(error) = &error {
            tracing::warn!(job = job.name(), error, "a job failed; it will be tried again");
        }
        {
            let mut status = lock(&status);
            status.running = false;
            status.runs += 1;
            status.failures += u64::from(error.is_some());
            status.last_finished_at = Some(now());
            status.last_duration_ms = Some(millis(began.elapsed()));
            status.last_error = error;
        }
        let pause = pause(job.period(), panics_in_a_row);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            // A job that panics is not driven on by what wakes it.
            () = job.woken(), if panics_in_a_row == 0 => {}
        }
    }
}

/// The period; after panics in a row twice as long for each, to a bound.
fn pause(period: Duration, panics_in_a_row: u32) -> Duration {
    match panics_in_a_row {
        0 => period,
        panics => period.saturating_mul(1 << panics.min(16)).min(LONGEST_PAUSE.max(period)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::Error;

    struct Stumbling {
        rounds: AtomicU32,
        finished: AtomicU32,
    }

    #[async_trait::async_trait]
    impl Job for Stumbling {
        fn name(&self) -> &'static str {
            "stumbling"
        }

        fn period(&self) -> Duration {
            Duration::from_millis(1)
        }

        async fn activate(&self, _: &CancellationToken) -> Result<(), Error> {
            match self.rounds.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("the first round"),
                1 => Err(Error::unavailable("the second round")),
                _ => Ok(()),
            }
        }

        async fn finish(&self) {
            self.finished.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn a_panic_and_an_error_are_shown_and_survived() {
        let job = Arc::new(Stumbling { rounds: AtomicU32::new(0), finished: AtomicU32::new(0) });
        let supervisor = Supervisor::run(vec![job.clone()]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while job.rounds.load(Ordering::SeqCst) < 4 {
            assert!(Instant::now() < deadline, "the job was not run again: {:?}", supervisor.status());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        supervisor.stop().await;
        let status = supervisor.status().remove(0);
        assert_eq!(status.failures, 2);
        assert!(!status.running);
        assert_eq!(status.last_error, None);
        assert_eq!(job.finished.load(Ordering::SeqCst), 1);
        let rounds = job.rounds.load(Ordering::SeqCst);
        assert_eq!(u64::from(rounds), status.runs, "nothing runs after the stop");
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let period = Duration::from_secs(5);
        assert_eq!(pause(period, 0), period);
        assert_eq!(pause(period, 2), Duration::from_secs(20));
        assert_eq!(pause(period, 1000), LONGEST_PAUSE);
        assert_eq!(pause(Duration::from_secs(3600), 9), Duration::from_secs(3600));
    }
}
