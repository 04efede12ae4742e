//! How another crate adds to this server without forking it.

use std::{error::Error, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::Router;
use futures_util::{FutureExt, future::BoxFuture};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;
use wrenn_schema::Services;

/// What an extension's own steps may fail with.
pub type ExtensionError = Box<dyn Error + Send + Sync>;

/// A part of the server that lives in another crate. Every method has a default that adds nothing.
pub trait Extension: Send + Sync + 'static {
    /// For the log and for errors.
    fn name(&self) -> &'static str;

    /// Runs once at start, after the server's own migrations and before anything is served; the place for
    /// migrations of the extension (with a migration table of its own).
    fn prepare<'a>(&'a self, _db: &'a DatabaseConnection) -> BoxFuture<'a, Result<(), ExtensionError>> {
        std::future::ready(Ok(())).boxed()
    }

    /// Routes, merged with the server's own; a path that is taken already is a panic at start.
    fn routes(&self, _services: &Arc<Services>) -> Router {
        Router::new()
    }

    /// Background workers, started with the server and stopped before its services.
    fn workers(&self, _services: &Arc<Services>) -> Vec<Worker> {
        Vec::new()
    }
}

/// Work that goes on beside requests.
#[derive(Clone)]
pub struct Worker {
    name: &'static str,
    work: Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Worker {
    /// `work` is to end soon after its token is cancelled. If it panics it is started again.
    pub fn new<F, Fut>(name: &'static str, work: F) -> Self
    where
        F: Fn(CancellationToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self { name, work: Arc::new(move |stop| work(stop).boxed()) }
    }

    /// Runs until the work ends by itself, starting it again after a panic, later each time up to a minute.
    pub(crate) async fn run(self, stop: CancellationToken) {
        const LONGEST_PAUSE: Duration = Duration::from_secs(60);
        let mut pause = Duration::from_secs(1);
        while AssertUnwindSafe((self.work)(stop.clone())).catch_unwind().await.is_err() {
            tracing::error!(worker = self.name, ?pause, "a worker panicked; it starts again after a pause");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panicking_worker_starts_again_and_stops_when_told() {
        let runs = Arc::new(AtomicU32::new(0));
        let stop = CancellationToken::new();
        let worker = {
            let runs = Arc::clone(&runs);
            Worker::new("test", move |stop| {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                async move {
                    assert!(run >= 2, "not yet");
                    stop.cancelled().await;
                }
            })
        };
        let running = tokio::spawn(worker.run(stop.clone()));
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
        running.await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }
}
