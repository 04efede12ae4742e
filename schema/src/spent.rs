//! Where the time of a request goes, for those who want to know.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::Either;

tokio::task_local! {
    static SPENT: Arc<Spent>;
}

/// What one request has waited for. Things that it waited for at once are added up, so the parts may be more than the
/// whole.
#[derive(Debug, Default)]
pub struct Spent {
    database_ns: AtomicU64,
    statements: AtomicU64,
    agents_ns: AtomicU64,
    calls: AtomicU64,
}

impl Spent {
    /// Notes what `work` waits for, also in the tasks that it waits for.
    pub async fn note<F: Future>(self: &Arc<Self>, work: F) -> F::Output {
        SPENT.scope(self.clone(), work).await
    }

    /// Waiting for the database.
    #[must_use]
    pub fn database(&self) -> Duration {
        Duration::from_nanos(self.database_ns.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// Waiting for host agents, the work of the guests included.
    #[must_use]
    pub fn agents(&self) -> Duration {
        Duration::from_nanos(self.agents_ns.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

fn add(total: &AtomicU64, count: &AtomicU64, elapsed: Duration) {
    total.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    count.fetch_add(1, Ordering::Relaxed);
}

/// A statement took so long.
pub(crate) fn statement(elapsed: Duration) {
    // Most that is done is done for nobody who wants to know.
    let _ = SPENT.try_with(|spent| add(&spent.database_ns, &spent.statements, elapsed));
}

/// Notes how long an agent takes to answer.
pub(crate) async fn call<F: Future>(answer: F) -> F::Output {
    let began = Instant::now();
    let answer = answer.await;
    let _ = SPENT.try_with(|spent| add(&spent.agents_ns, &spent.calls, began.elapsed()));
    answer
}

/// The same work for another task, noted where it is noted here.
pub(crate) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match SPENT.try_with(Arc::clone) {
        Ok(spent) => Either::Left(SPENT.scope(spent, work)),
        Err(_) => Either::Right(work),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_waited_for_is_added_up_in_other_tasks_too() {
        let spent = Arc::new(Spent::default());
        statement(Duration::from_secs(1));
        spent
            .note(async {
                statement(Duration::from_secs(2));
                tokio::spawn(carried(async { statement(Duration::from_secs(3)) })).await.expect("ends");
                tokio::spawn(async { statement(Duration::from_secs(4)) }).await.expect("ends");
                call(std::future::ready(())).await;
            })
            .await;
        assert_eq!((spent.database(), spent.statements(), spent.calls()), (Duration::from_secs(5), 2, 1));
        carried(async { statement(Duration::from_secs(6)) }).await;
        assert_eq!(spent.statements(), 2);
    }
}
