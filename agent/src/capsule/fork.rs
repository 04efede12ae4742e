//! Forks: running copies of one moment of a capsule, all of them or none.
//!
//! ```text
//!  parent:   ─── runs ──┤ moment ├── runs ──────────────────────────────▶
//!                            │ fork point (not synced: it need not survive the host)
//!  child 1:                  ├─ starting ─ ready ┐
//!  child 2:                  ├─ starting ─ ready ┤ all ready: each is recorded and served
//!  child n:                  └─ starting ─ ready ┘ one failed: each is taken apart
//!                                                └─ the fork point is removed
//! ```
//! The children are ordinary capsules in the state `starting` until all of them are ready. An agent that dies before
//! that finds records of capsules that never ran, and removes them with the fork point.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Semaphore, watch};
use wrenn_vmm::failpoint;
use wrenn_vmm::snapshot::Snapshot;

use super::aside::remove_at_once;
use super::checkpoint::Scope;
use super::driver::Origin;
use super::error::CapsuleError;
use super::record::Record;
use super::registry::{CapsuleRegistry, Publication, begun};
use super::spec::{CapsuleSpec, name};
use super::steps::Steps;
use super::view::CapsuleView;
use crate::host;
use crate::ids::CapsuleId;
use crate::request_id::RequestId;
use crate::token::Token;

/// Copies that one request may ask for.
const MOST_CHILDREN: usize = 100;
/// Children started at once, for each CPU of the host: more only wait for each other.
const STARTS_PER_CPU: usize = 2;

/// The moment that the copies of one request start from.
pub struct ForkPoint {
    pub snapshot: Snapshot,
    /// The one that the guest in its memory asks for.
    pub token: Token,
    /// Starts that may be under way at once.
    pub starts: Semaphore,
    pub siblings: Siblings,
}

/// Where the copies of one request wait for each other.
pub struct Siblings(watch::Sender<Gathering>);

struct Gathering {
    missing: usize,
    failure: Option<CapsuleError>,
}

impl Siblings {
    fn new(all: usize) -> Self {
        Self(watch::Sender::new(Gathering { missing: all, failure: None }))
    }

    /// One is ready. Returns when all are, or with the failure of the first that will not be.
    pub async fn ready(&self) -> Result<(), CapsuleError> {
        self.0.send_modify(|gathering| gathering.missing = gathering.missing.saturating_sub(1));
        let mut gathering = self.0.subscribe();
        // All or none: once nobody is missing any more, nobody can make the others fail.
        let settled = gathering.wait_for(|now| now.missing == 0 || now.failure.is_some()).await;
        let settled = settled.map_err(|_| CapsuleError::Stopping)?;
        match &settled.failure {
            Some(error) if settled.missing > 0 => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// One will never be ready; all learn the first such failure.
    pub fn fail(&self, child: CapsuleId, error: CapsuleError) -> CapsuleError {
        let error = match error {
            // It only follows another one.
            failed @ CapsuleError::ForkFailed { .. } => failed,
            error => CapsuleError::ForkFailed { child, source: error.into() },
        };
        self.0.send_modify(|gathering| {
            gathering.failure.get_or_insert_with(|| error.clone());
        });
        error
    }

    /// The failure that makes it useless to go on.
    pub fn failure(&self) -> Option<CapsuleError> {
        self.0.borrow().failure.clone()
    }
}

/// The copies of one request, and how long their parent stood still.
pub struct Forked {
    pub children: Vec<Arc<CapsuleView>>,
    pub stopped: Duration,
}

/// What is shown of the children, in their order.
type Births = Vec<Publication>;

impl CapsuleRegistry {
    /// Makes running copies of one moment of a capsule. Where they all exist already they are answered with as they
    /// are.
    pub async fn fork(
        &self,
        parent: CapsuleId,
        children: Vec<CapsuleId>,
        inherit_secrets: bool,
        request: RequestId,
    ) -> Result<Forked, CapsuleError> {
        check(parent, &children)?;
        let mut steps = Steps::start("fork");
        // To its end, also when the agent stops.
        let work = self.make_copies(parent, &children, inherit_secrets, request, &mut steps);
        match self.engine().tasks.track_future(work).await {
            Ok(forked) => {
                steps.finish();
                Ok(forked)
            }
            Err(error) => {
                steps.fail(&error);
                Err(error)
            }
        }
    }

    async fn make_copies(
        &self,
        parent: CapsuleId,
        children: &[CapsuleId],
        inherit_secrets: bool,
        request: RequestId,
        steps: &mut Steps,
    ) -> Result<Forked, CapsuleError> {
        if let Some(births) = self.births_of(parent, children)? {
            let children = born(births).await?;
            return Ok(Forked { children, stopped: Duration::ZERO });
        }
        let engine = self.engine();
        let view = self.get(parent)?;
        let count = u32::try_from(children.len()).unwrap_or(u32::MAX);
        // Held until all are up.
        let _room = engine.room(count, view.spec.memory_mib, 0).await?;
        let directory = engine.paths.fork(&name(format!("fork-{}", uuid::Uuid::now_v7().simple())));
        let moment = self.moment(parent, Scope::Whole, directory.clone(), request.clone()).await?;
        steps.done("moment");
        failpoint!("fork.taken").await.map_err(CapsuleError::step("taking the moment"))?;
        let (token, keep_awake, stopped) = (moment.token, moment.keep_awake, moment.stopped);
        let snapshot = moment.writer.commit_unsynced().await;
        let snapshot = snapshot.map_err(CapsuleError::step("completing the fork point"))?;
        let point = Arc::new(ForkPoint {
            snapshot,
            token,
            starts: Semaphore::new(STARTS_PER_CPU * host::cpus() as usize),
            siblings: Siblings::new(children.len()),
        });
        let records = children.iter().map(|child| {
            let spec = view.spec.of_fork(*child, inherit_secrets);
            let token = Token::generate().map_err(CapsuleError::step("making a token"))?;
            let mut record = Record::new(spec, token, view.timeout_sec);
            record.keep_awake.clone_from(&keep_awake);
            Ok(record)
        });
        let outcome = async {
            failpoint!("fork.visible").await.map_err(CapsuleError::step("completing the fork point"))?;
            let births = self.give_birth(parent, records.collect::<Result<_, _>>()?, &point, &request)?;
            born(births).await
        };
        let outcome = outcome.await;
        steps.done("children");
        failpoint!(sure "fork.born").await;
        if let Err(error) = engine.vmm.forget(&point.snapshot).await {
            tracing::warn!(error = %crate::report(&error), "a fork point's memory stays");
        }
        if let Err(error) = remove_at_once(&directory).await {
            tracing::warn!(%error, path = %directory.display(), "a fork point is left");
        }
        failpoint!(sure "fork.removed").await;
        steps.done("remove");
        Ok(Forked { children: outcome?, stopped })
    }

    /// None if none of them exists; an error if some do, or are no copies of this capsule.
    fn births_of(&self, parent: CapsuleId, children: &[CapsuleId]) -> Result<Option<Births>, CapsuleError> {
        let there: Vec<_> = children.iter().filter_map(|child| self.publication(*child)).collect();
        let copies = there.iter().filter(|published| published.borrow().view.spec.parent == Some(parent));
        if there.is_empty() {
            Ok(None)
        } else if copies.count() == children.len() {
            Ok(Some(there))
        } else {
            let message = format!("{} of the {} ids are taken already", there.len(), children.len());
            Err(CapsuleError::Invalid { field: "id", message })
        }
    }

    /// All at once: a repeated request finds all of them or none.
    fn give_birth(
        &self,
        parent: CapsuleId,
        records: Vec<Record>,
        point: &Arc<ForkPoint>,
        request: &RequestId,
    ) -> Result<Births, CapsuleError> {
        let children: Vec<CapsuleId> = records.iter().map(|record| record.spec.id).collect();
        let drivers = records.into_iter().map(|record| (record, Origin::Fork(point.clone())));
        match self.begin(drivers.collect(), request)? {
            Some(births) => Ok(births),
            // The same request was faster meanwhile.
            None => self.births_of(parent, &children).map(Option::unwrap_or_default),
        }
    }
}

fn check(parent: CapsuleId, children: &[CapsuleId]) -> Result<(), CapsuleError> {
    if !(1..=MOST_CHILDREN).contains(&children.len()) {
        let message = format!("from 1 to {MOST_CHILDREN} copies can be made at once, not {}", children.len());
        return Err(CapsuleError::Invalid { field: "count", message });
    }
    let different: HashSet<_> = children.iter().chain([&parent]).collect();
    if different.len() != children.len() + 1 {
        let message = "each copy needs an id of its own".to_owned();
        return Err(CapsuleError::Invalid { field: "id", message });
    }
    Ok(())
}

/// Waits until each runs or has failed.
async fn born(births: Births) -> Result<Vec<Arc<CapsuleView>>, CapsuleError> {
    join_all(births.into_iter().map(begun)).await.into_iter().collect()
}

impl CapsuleSpec {
    /// What a copy of this capsule is asked to be.
    pub fn of_fork(&self, child: CapsuleId, inherit_secrets: bool) -> Self {
        let env = if inherit_secrets { self.env.clone() } else { self.public_env() };
        Self { id: child, parent: Some(self.id), env, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: u128) -> CapsuleId {
        CapsuleId::from_u128(value)
    }

    #[test]
    fn one_to_a_hundred_different_copies_can_be_asked_for() {
        let ids = |values: std::ops::Range<u128>| values.map(id).collect::<Vec<_>>();
        check(id(0), &ids(1..2)).unwrap();
        check(id(0), &ids(1..101)).unwrap();
        let field = |children: &[CapsuleId]| match check(id(0), children) {
            Err(CapsuleError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(&[]), "count");
        assert_eq!(field(&ids(1..102)), "count");
        assert_eq!(field(&[id(1), id(1)]), "id");
        assert_eq!(field(&[id(1), id(0)]), "id");
    }

    #[tokio::test]
    async fn siblings_go_on_together() {
        let siblings = Siblings::new(3);
        let mut first = Box::pin(siblings.ready());
        let mut second = Box::pin(siblings.ready());
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        siblings.ready().await.unwrap();
        first.await.unwrap();
        second.await.unwrap();
    }

    #[tokio::test]
    async fn the_first_failure_is_everybodys() {
        let siblings = Siblings::new(3);
        let mut waiting = Box::pin(siblings.ready());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        siblings.fail(id(7), CapsuleError::VmmDied("signal 9".into()));
        let later = siblings.fail(id(8), siblings.failure().unwrap());
        for error in [waiting.await.unwrap_err(), siblings.ready().await.unwrap_err(), later] {
            assert!(matches!(error, CapsuleError::ForkFailed { child, .. } if child == id(7)), "{error}");
        }
    }
}
