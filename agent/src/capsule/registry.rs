//! The capsules of this host: how requests find their driver, and how the others learn what happened.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use wrenn_vmm::process::VmmProcess;

use super::activity::{Activity, Attached};
use super::driver::{Beginning, Body, Driver, Origin, Published, ReplyOf, Request};
use super::engine::Engine;
use super::error::CapsuleError;
use super::life::RunningHandle;
use super::record::{Record, RecordFile};
use super::spec::CapsuleSpec;
use super::template::Template;
use super::view::{CapsuleView, Cause, State};
use crate::ids::CapsuleId;
use crate::request_id::RequestId;
use crate::token::Token;

/// How long the cause of a capsule's end is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Requests that may wait for one driver.
const QUEUE: usize = 64;
/// Changes that a watcher may be behind before it is told to begin again.
const EVENTS: usize = 1024;
/// Pauses under way when a whole host is paused: more would only wait for the same disk.
const PAUSES_AT_ONCE: usize = 4;

/// A driver, from outside.
#[derive(Clone)]
struct Handle {
    queue: mpsc::Sender<Request>,
    published: watch::Receiver<Published>,
    activity: Arc<Activity>,
    cancelled: CancellationToken,
}

/// A capsule that is gone.
struct Tombstone {
    view: Arc<CapsuleView>,
    since: Instant,
    /// It never ran: the id may be used for another attempt.
    failed_to_start: bool,
}

#[derive(Default)]
struct Table {
    living: HashMap<CapsuleId, Handle>,
    tombstones: HashMap<CapsuleId, Tombstone>,
}

impl Table {
    /// Of a capsule that lives, or that ran and is gone; one that never ran is unknown.
    fn publication(&self, id: CapsuleId) -> Option<Publication> {
        if let Some(handle) = self.living.get(&id) {
            return Some(handle.published.clone());
        }
        let stone = self.tombstones.get(&id).filter(|stone| !stone.failed_to_start)?;
        let last = Published { view: stone.view.clone(), running: None, failure: None };
        Some(watch::channel(last).1)
    }
}

/// What a capsule's driver shows.
pub type Publication = watch::Receiver<Published>;

/// Waits until a capsule runs, or has failed to.
pub async fn begun(mut published: Publication) -> Result<Arc<CapsuleView>, CapsuleError> {
    let begun = published.wait_for(|now| now.view.state != State::Starting).await;
    let begun = begun.map_err(|_| CapsuleError::Stopping)?;
    match &begun.failure {
        Some(error) => Err(error.clone()),
        None => Ok(begun.view.clone()),
    }
}

/// What the drivers share with the registry.
pub struct Shared {
    table: RwLock<Table>,
    events: broadcast::Sender<Arc<CapsuleView>>,
}

impl Shared {
    fn new() -> Self {
        Self { table: RwLock::default(), events: broadcast::channel(EVENTS).0 }
    }

    pub fn announce(&self, view: Arc<CapsuleView>) {
        // Nobody may be watching.
        let _unwatched = self.events.send(view);
    }

    /// The capsule is gone; its last view stays for a while.
    pub fn bury(&self, id: CapsuleId, view: Arc<CapsuleView>, failed_to_start: bool) {
        let mut table = self.write();
        table.living.remove(&id);
        table.tombstones.retain(|_, stone| stone.since.elapsed() < REMEMBERED);
        table.tombstones.insert(id, Tombstone { view, since: Instant::now(), failed_to_start });
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running capsule in use; keeps it awake for as long as it is held, if it was asked for that.
#[derive(Debug)]
pub struct Running {
    pub id: CapsuleId,
    pub handle: RunningHandle,
    /// None for those who only look.
    #[expect(dead_code, reason = "held for its drop, which lets the capsule fall asleep")]
    attached: Option<Attached>,
}

/// All capsules of this host.
pub struct CapsuleRegistry {
    engine: Arc<Engine>,
    shared: Arc<Shared>,
    stopping: CancellationToken,
    /// Set by a drain, to the end of this agent.
    draining: AtomicBool,
}

impl CapsuleRegistry {
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            shared: Arc::new(Shared::new()),
            stopping: CancellationToken::new(),
            draining: AtomicBool::new(false),
        }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Makes a capsule and waits until it runs. One that exists is answered with as it is; one that is
    /// being made is waited for.
    pub async fn create(
        &self,
        spec: CapsuleSpec,
        timeout_sec: u32,
        request: RequestId,
    ) -> Result<Arc<CapsuleView>, CapsuleError> {
        let id = spec.id;
        if let Some(existing) = self.publication(id) {
            return begun(existing).await;
        }
        let mut spec = spec;
        if spec.from_snapshot {
            Template::of(&self.engine.paths, &spec).await?.record.complete(&mut spec);
        }
        let token = Token::generate().map_err(CapsuleError::step("making a token"))?;
        let record = Record::new(spec, token, timeout_sec);
        let begins = self.begin(vec![(record, Origin::Template)], &request)?;
        // If it exists by now, the same request was faster meanwhile.
        let published = begins.and_then(|mut begins| begins.pop()).or_else(|| self.publication(id));
        begun(published.ok_or(CapsuleError::Stopping)?).await
    }

    /// Drivers for capsules that are to be made, for all of them at once. None if one of them exists already.
    pub(super) fn begin(
        &self,
        records: Vec<(Record, Origin)>,
        request: &RequestId,
    ) -> Result<Option<Vec<Publication>>, CapsuleError> {
        let mut table = self.shared.write();
        if records.iter().any(|(record, _)| table.publication(record.spec.id).is_some()) {
            return Ok(None);
        }
        self.admits()?;
        let begins = records.into_iter().map(|(record, origin)| {
            let id = record.spec.id;
            let handle = self.spawn(record, Beginning::Create { origin, request: request.clone() });
            let published = handle.published.clone();
            table.tombstones.remove(&id);
            table.living.insert(id, handle);
            published
        });
        Ok(Some(begins.collect()))
    }

    /// What is shown of a capsule that exists, or did.
    pub(super) fn publication(&self, id: CapsuleId) -> Option<Publication> {
        self.shared.read().publication(id)
    }

    /// Takes in a capsule that an earlier agent left.
    pub fn adopt(&self, record: Record, body: Body) {
        let id = record.spec.id;
        let handle = self.spawn(record, Beginning::Adopted(body));
        self.shared.write().living.insert(id, handle);
    }

    /// Remembers a capsule that was lost while no agent was there to see it.
    pub fn remember(&self, record: Record) {
        let view = CapsuleView {
            timeout_sec: record.timeout_sec,
            state: record.state,
            cause: record.cause,
            revision: record.revision,
            started_at_ns: record.started_at_ns,
            last_active_at_ns: record.last_active_at_ns,
            spec: Arc::new(record.spec),
        };
        self.shared.bury(view.spec.id, Arc::new(view), false);
    }

    fn spawn(&self, record: Record, beginning: Beginning) -> Handle {
        let (queue, requests) = mpsc::channel(QUEUE);
        let idle = crate::clock::now_ns().saturating_sub(record.last_active_at_ns);
        let activity = Activity::idle_since(Duration::from_nanos(idle.try_into().unwrap_or(0)));
        let cancelled = CancellationToken::new();
        let spec = Arc::new(record.spec.clone());
        let id = spec.id;
        let file = RecordFile::at(self.engine.paths.capsule(&spec.name()).record());
        let view = Arc::new(CapsuleView {
            spec: spec.clone(),
            state: record.state,
            cause: record.cause.clone(),
            timeout_sec: record.timeout_sec,
            revision: record.revision,
            started_at_ns: record.started_at_ns,
            last_active_at_ns: record.last_active_at_ns,
        });
        self.shared.announce(view.clone());
        let running = match &beginning {
            Beginning::Adopted(Body::Running(running)) => Some(running.handle.clone()),
            _ => None,
        };
        let (sender, published) = watch::channel(Published { view, running, failure: None });
        let driver = Driver {
            engine: self.engine.clone(),
            shared: self.shared.clone(),
            record,
            file,
            spec,
            queue: requests,
            published: sender,
            activity: activity.clone(),
            cancelled: cancelled.clone(),
        };
        // Not the span of the request that happened to make it: a capsule outlives that.
        let span = tracing::info_span!(parent: None, "capsule", %id);
        self.engine.tasks.spawn(driver.run(beginning).instrument(span));
        Handle { queue, published, activity, cancelled }
    }

    fn handle(&self, id: CapsuleId) -> Result<Handle, CapsuleError> {
        let table = self.shared.read();
        if let Some(handle) = table.living.get(&id) {
            return Ok(handle.clone());
        }
        Err(match table.tombstones.get(&id) {
            Some(stone) => {
                let cause = stone.view.cause.clone();
                CapsuleError::WrongState { id, state: stone.view.state, cause }
            }
            None => CapsuleError::NotFound(id),
        })
    }

    /// The capsule as it is, or as it was when it went.
    pub fn get(&self, id: CapsuleId) -> Result<Arc<CapsuleView>, CapsuleError> {
        let table = self.shared.read();
        match (table.living.get(&id), table.tombstones.get(&id)) {
            (Some(handle), _) => Ok(handle.view()),
            (None, Some(stone)) => Ok(stone.view.clone()),
            (None, None) => Err(CapsuleError::NotFound(id)),
        }
    }

    /// All that live, and those lately gone.
    pub fn list(&self) -> Vec<Arc<CapsuleView>> {
        let table = self.shared.read();
        let gone = table.tombstones.values().filter(|stone| stone.since.elapsed() < REMEMBERED);
        table.living.values().map(Handle::view).chain(gone.map(|stone| stone.view.clone())).collect()
    }

    /// Every change from now on. Subscribe, then list: a change in between is seen twice, never missed.
    pub fn changes(&self) -> broadcast::Receiver<Arc<CapsuleView>> {
        self.shared.events.subscribe()
    }

    /// The way into a capsule that runs, and activity for as long as it is held.
    pub fn running(&self, id: CapsuleId) -> Result<Running, CapsuleError> {
        let (handle, running) = self.looked_up(id)?;
        Ok(Running { attached: Some(handle.activity.attach()), ..running })
    }

    /// The same for those who only look.
    pub fn look_into(&self, id: CapsuleId) -> Result<Running, CapsuleError> {
        self.looked_up(id).map(|(_, running)| running)
    }

    fn looked_up(&self, id: CapsuleId) -> Result<(Handle, Running), CapsuleError> {
        let handle = self.handle(id)?;
        let now = handle.published.borrow().clone();
        match now.running {
            Some(running) if !running.life.is_over() => {
                Ok((handle, Running { id, handle: running, attached: None }))
            }
            _ => Err(CapsuleError::wrong_state(id, now.view.state, now.view.cause.clone())),
        }
    }

    pub async fn pause(&self, id: CapsuleId, request: RequestId) -> Result<Arc<CapsuleView>, CapsuleError> {
        self.ask(id, |reply| Request::Pause { cause: None, request, reply }).await
    }

    pub async fn resume(&self, id: CapsuleId, request: RequestId) -> Result<Arc<CapsuleView>, CapsuleError> {
        self.admits()?;
        let resumed = self.ask(id, |reply| Request::Resume { request: request.clone(), reply }).await?;
        // A drain that began meanwhile may have come to this capsule before the resume did.
        if self.draining.load(Ordering::Relaxed) {
            self.pause(id, request).await?;
            return Err(CapsuleError::Draining);
        }
        Ok(resumed)
    }

    /// Unknown is destroyed already.
    pub async fn destroy(&self, id: CapsuleId) -> Result<(), CapsuleError> {
        let Ok(handle) = self.handle(id) else { return Ok(()) };
        handle.cancelled.cancel();
        self.ask(id, |reply| Request::Destroy { reply }).await.map(drop).or_else(|error| match error {
            CapsuleError::NotFound(_) | CapsuleError::WrongState { state: State::Stopped, .. } => Ok(()),
            error => Err(error),
        })
    }

    /// A sign of activity, from outside.
    pub fn ping(&self, id: CapsuleId) -> Result<Arc<CapsuleView>, CapsuleError> {
        let handle = self.handle(id)?;
        handle.activity.touch();
        Ok(handle.view())
    }

    pub async fn set_timeout(
        &self,
        id: CapsuleId,
        timeout_sec: u32,
    ) -> Result<Arc<CapsuleView>, CapsuleError> {
        self.ask(id, |reply| Request::SetTimeout { timeout_sec, reply }).await
    }

    /// Lets a process keep its capsule awake for as long as it runs.
    pub async fn keep_awake(&self, id: CapsuleId, pid: u32) -> Result<(), CapsuleError> {
        let handle = self.handle(id)?;
        handle.queue.send(Request::KeepAwake { pid }).await.map_err(|_| CapsuleError::NotFound(id))
    }

    /// Asks a capsule's driver, and waits for its answer.
    pub(super) async fn ask<T>(
        &self,
        id: CapsuleId,
        request: impl FnOnce(ReplyOf<T>) -> Request,
    ) -> Result<T, CapsuleError> {
        let (reply, answer) = oneshot::channel();
        let handle = self.handle(id)?;
        let gone = || self.handle(id).err().unwrap_or(CapsuleError::Stopping);
        handle.queue.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Takes no new lives until the agent is started again, and pauses whatever runs; answers how many it paused.
    pub async fn drain(&self) -> Result<usize, CapsuleError> {
        {
            // Under the lock, so that whoever checked before is in the table by now.
            let _table = self.shared.write();
            self.draining.store(true, Ordering::Relaxed);
        }
        self.engine.pool.close();
        let paused = self.pause_all("HOST_DRAINING").await;
        match self.count_running() {
            0 => Ok(paused),
            left => Err(CapsuleError::StillRunning(left)),
        }
    }

    /// Whether a new life may begin here: of a new capsule, a paused one or a fork.
    fn admits(&self) -> Result<(), CapsuleError> {
        if self.stopping.is_cancelled() {
            return Err(CapsuleError::Stopping);
        }
        if self.draining.load(Ordering::Relaxed) { Err(CapsuleError::Draining) } else { Ok(()) }
    }

    /// Pauses whatever runs, a few at a time, and answers how many it paused; failures are logged.
    pub async fn pause_all(&self, code: &str) -> usize {
        let capsules: Vec<(CapsuleId, u64)> = {
            let table = self.shared.read();
            table.living.iter().map(|(id, handle)| (*id, handle.published.borrow().view.revision)).collect()
        };
        let pauses = capsules.into_iter().map(|(id, revision)| async move {
            let cause = Some(Cause::new(code, "every capsule of this host was paused"));
            let request = RequestId::new();
            match self.ask(id, |reply| Request::Pause { cause, request, reply }).await {
                // One that was paused already has not changed.
                Ok(view) => view.revision != revision,
                Err(error) => {
                    tracing::warn!(capsule = %id, error = %crate::report(&error), "not paused");
                    false
                }
            }
        });
        let paused = futures_util::stream::iter(pauses).buffer_unordered(PAUSES_AT_ONCE);
        paused.filter(|paused| std::future::ready(*paused)).count().await
    }

    /// Takes no new work, lets transitions under way end, and leaves machines running.
    pub async fn leave_all(&self) {
        self.close();
        let ids: Vec<CapsuleId> = self.shared.read().living.keys().copied().collect();
        join_all(ids.into_iter().map(|id| self.ask(id, |reply| Request::Leave { reply }))).await;
        self.engine.pool.close();
        self.engine.tasks.close();
        self.engine.tasks.wait().await;
    }

    /// No capsule is created or resumed any more.
    pub fn close(&self) {
        // Under the lock, so that whoever checked before is in the table by now.
        let _table = self.shared.write();
        self.stopping.cancel();
    }

    /// All that live, and the VMM of each that runs.
    pub fn machines(&self) -> HashMap<CapsuleId, Option<VmmProcess>> {
        let vmm = |handle: &Handle| {
            let now = handle.published.borrow();
            now.running.as_ref().filter(|running| !running.life.is_over()).map(|running| running.vmm.clone())
        };
        self.shared.read().living.iter().map(|(id, handle)| (*id, vmm(handle))).collect()
    }

    /// How many run, whether their guests answer or not.
    pub fn count_running(&self) -> usize {
        let table = self.shared.read();
        table.living.values().filter(|handle| handle.published.borrow().view.state == State::Running).count()
    }
}

impl Handle {
    fn view(&self) -> Arc<CapsuleView> {
        let view = self.published.borrow().view.clone();
        let last_active_at_ns = self.activity.last_ns();
        if view.state == State::Running && last_active_at_ns != view.last_active_at_ns {
            return Arc::new(CapsuleView { last_active_at_ns, ..(*view).clone() });
        }
        view
    }
}
