//! Where the time of a request goes, for those who want to know.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::Either;
use tonic::metadata::MetadataMap;
use wrenn_proto::GUEST_WAITED;

tokio::task_local! {
    static SPENT: Arc<Spent>;
}

/// What one request has waited for. Things that it waited for at once are added up, so the parts may be more than the
/// whole.
#[derive(Debug, Default)]
pub struct Spent {
    database_ns: AtomicU64,
    statements: AtomicU64,
    /// Their guests included.
    agents_ns: AtomicU64,
    guests_ns: AtomicU64,
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

    /// Waiting for host agents, while they did not wait for guests themselves.
    #[must_use]
    pub fn agents(&self) -> Duration {
        Duration::from_nanos(self.agents_ns.load(Ordering::Relaxed)).saturating_sub(self.guests())
    }

    /// Waiting for guests, by what their agents say.
    #[must_use]
    pub fn guests(&self) -> Duration {
        Duration::from_nanos(self.guests_ns.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

fn add(total: &AtomicU64, elapsed: Duration) {
    total.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Most that is done is done for nobody who wants to know.
fn noted(note: impl FnOnce(&Spent)) {
    let _ = SPENT.try_with(|spent| note(spent));
}

/// A statement took so long.
pub(crate) fn statement(elapsed: Duration) {
    noted(|spent| {
        add(&spent.database_ns, elapsed);
        spent.statements.fetch_add(1, Ordering::Relaxed);
    });
}

/// Notes how long an agent takes to answer.
pub(crate) async fn call<F: Future>(answer: F) -> F::Output {
    noted(|spent| {
        spent.calls.fetch_add(1, Ordering::Relaxed);
    });
    more(answer).await
}

/// The same of what it says later in the same call.
pub(crate) async fn more<F: Future>(said: F) -> F::Output {
    let began = Instant::now();
    let said = said.await;
    noted(|spent| add(&spent.agents_ns, began.elapsed()));
    said
}

/// How much of that an agent waited for guests, as it says at the end of its answer.
pub(crate) fn of_it_guests(end: &MetadataMap) {
    let waited = end.get(GUEST_WAITED).and_then(|waited| waited.to_str().ok()?.parse().ok());
    if let Some(waited) = waited {
        noted(|spent| add(&spent.guests_ns, Duration::from_micros(waited)));
    }
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

    #[tokio::test]
    async fn what_an_agent_waits_for_is_its_guests() {
        let spent = Arc::new(Spent::default());
        let took = Duration::from_millis(3);
        let end = |us: &'static str| {
            let mut end = MetadataMap::new();
            end.insert(GUEST_WAITED, us.parse().expect("a value"));
            end
        };
        let all = async {
            call(std::future::ready(())).await;
            add(&spent.agents_ns, took);
            of_it_guests(&end("1000"));
            of_it_guests(&end("nonsense"));
            of_it_guests(&MetadataMap::new());
        };
        spent.note(all).await;
        assert_eq!((spent.guests(), spent.calls()), (Duration::from_millis(1), 1));
        assert!(spent.agents() >= took - spent.guests(), "{spent:?}");
        spent.note(async { of_it_guests(&end("9999999")) }).await;
        assert_eq!(spent.agents(), Duration::ZERO, "clocks of two machines");
    }
}
