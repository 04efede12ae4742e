//! The task that owns one capsule.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use wrenn_proto::envd::v1 as envd;
use wrenn_vmm::process::ProcessExit;

use super::activity::Activity;
use super::checkpoint::{Moment, Scope};
use super::engine::Engine;
use super::error::CapsuleError;
use super::fork::ForkPoint;
use super::handover::Handover;
use super::life::{LifeEnd, RunningHandle};
use super::parts::RunningCapsule;
use super::pause::PausedCapsule;
use super::reconnect::UnheardCapsule;
use super::record::{Durability, Record, RecordFile};
use super::registry::Shared;
use super::view::{CapsuleView, Cause, State};
use crate::guest::Guest;
use crate::request_id::RequestId;

/// How often processes that keep their capsule awake are looked at.
const KEEP_AWAKE_PERIOD: Duration = Duration::from_secs(2);
/// How long a guest that stood still has to take the time that it lost: it may stand still again, more than once.
const TIME_TAKEN: Duration = Duration::from_secs(600);

pub type ReplyOf<T> = oneshot::Sender<Result<T, CapsuleError>>;
pub type Reply = ReplyOf<Arc<CapsuleView>>;

/// What a driver may be asked.
pub enum Request {
    Pause {
        cause: Option<Cause>,
        request: RequestId,
        reply: Reply,
    },
    Resume {
        request: RequestId,
        reply: Reply,
    },
    /// The capsule as it is now, written aside of `into`; it goes on.
    Capture {
        scope: Scope,
        into: PathBuf,
        request: RequestId,
        reply: ReplyOf<Moment>,
    },
    Destroy {
        reply: Reply,
    },
    SetTimeout {
        timeout_sec: u32,
        reply: Reply,
    },
    /// A process that counts as activity while it runs.
    KeepAwake {
        pid: u32,
    },
    /// The agent stops: write down what is, and let the machine run.
    Leave {
        reply: Reply,
    },
}

/// What a capsule is made of at the moment; its state's name is in the record.
pub enum Body {
    Running(Box<RunningCapsule>),
    /// It runs, too, but nobody can be served yet.
    Unheard(Box<UnheardCapsule>),
    Paused(PausedCapsule),
    /// In error: what is left on disk is found by its path.
    Broken,
    /// Nothing is left of it.
    Gone,
}

/// What others read of a capsule.
#[derive(Debug, Clone)]
pub struct Published {
    pub view: Arc<CapsuleView>,
    /// While it runs.
    pub running: Option<RunningHandle>,
    /// Why it could not be started.
    pub failure: Option<CapsuleError>,
}

/// How a driver begins.
pub enum Beginning {
    Create { origin: Origin, request: RequestId },
    Adopted(Body),
}

/// What a capsule is made from.
pub enum Origin {
    /// The template of its spec.
    Template,
    /// One moment of another capsule, together with others.
    Fork(Arc<ForkPoint>),
}

pub struct Driver {
    pub engine: Arc<Engine>,
    pub shared: Arc<Shared>,
    pub record: Record,
    pub file: RecordFile,
    pub spec: Arc<super::spec::CapsuleSpec>,
    pub queue: mpsc::Receiver<Request>,
    pub published: watch::Sender<Published>,
    pub activity: Arc<Activity>,
    /// Set when a capsule that is being started shall be destroyed.
    pub cancelled: CancellationToken,
}

enum Event {
    Request(Request),
    VmmDied(ProcessExit),
    /// The guest of an adopted capsule has answered, or was silent for too long.
    Heard(Result<Guest, CapsuleError>),
    /// The guest stood still for so long, as the host had no room for what it wrote.
    WentOn(Duration),
    Idle,
    LookAtKeepAwake,
    /// Every handle on the queue is gone.
    Abandoned,
}

impl Driver {
    pub async fn run(mut self, beginning: Beginning) {
        let mut body = match beginning {
            Beginning::Create { origin, request } => {
                let span = tracing::info_span!("create", %request);
                self.create(origin, &request).instrument(span).await
            }
            Beginning::Adopted(body) => {
                // Nobody could use it while there was no agent, and what used it before was not written down.
                self.activity.touch();
                body
            }
        };
        while !matches!(body, Body::Gone) {
            body = match self.next_event(&mut body).await {
                Event::Request(Request::Pause { cause, request, reply }) => {
                    let span = tracing::info_span!("pause", %request);
                    self.pause(body, cause, &request, Some(reply)).instrument(span).await
                }
                Event::Request(Request::Resume { request, reply }) => {
                    let span = tracing::info_span!("resume", %request);
                    let (body, outcome) = self.resume(body, &request).instrument(span).await;
                    self.answer(reply, outcome);
                    body
                }
                Event::Request(Request::Capture { scope, into, request, reply }) => {
                    let span = tracing::info_span!("capture", %request);
                    let (body, outcome) = self.capture(body, (scope, &into), &request).instrument(span).await;
                    // What nobody waits for any more leaves nothing.
                    let _gone = reply.send(outcome);
                    body
                }
                Event::Request(Request::Destroy { reply }) => {
                    let (body, outcome) = self.destroy(body).await;
                    self.answer(reply, outcome);
                    body
                }
                Event::Request(Request::SetTimeout { timeout_sec, reply }) => {
                    let outcome = self.set_timeout(timeout_sec, &body).await;
                    self.answer(reply, outcome);
                    body
                }
                Event::Request(Request::KeepAwake { pid }) => {
                    // Those that have ended are not gathered, however long nothing else looks at them.
                    if !self.record.keep_awake.is_empty() {
                        self.look_at_keep_awake(&body).await;
                    }
                    self.record.keep_awake.push(pid);
                    self.store(Durability::Process).await;
                    body
                }
                Event::Request(Request::Leave { reply }) => return self.leave(&body, reply).await,
                Event::VmmDied(exit) => self.vmm_died(body, exit).await,
                Event::Heard(outcome) => self.heard(body, outcome).await,
                Event::WentOn(stood) => {
                    give_time(&body, stood);
                    body
                }
                Event::Idle => self.idle(body).await,
                Event::LookAtKeepAwake => {
                    self.look_at_keep_awake(&body).await;
                    body
                }
                Event::Abandoned => return,
            };
        }
        self.bury().await;
    }

    async fn next_event(&mut self, body: &mut Body) -> Event {
        let running = match body {
            Body::Running(running) => running,
            Body::Unheard(unheard) => return self.listen(unheard).await,
            _ => return self.queue.recv().await.map_or(Event::Abandoned, Event::Request),
        };
        let timeout = Duration::from_secs(self.record.timeout_sec.into());
        let reaped = !timeout.is_zero();
        let keep_awake = reaped && !self.record.keep_awake.is_empty();
        tokio::select! {
            biased;
            exit = running.handle.vmm.exited() => Event::VmmDied(exit),
            request = self.queue.recv() => request.map_or(Event::Abandoned, Event::Request),
            // Given up with every other event, so that nothing here lets a machine go on which a transition has stopped.
            stood = running.machine.outlast_stall() => Event::WentOn(stood),
            () = tokio::time::sleep(KEEP_AWAKE_PERIOD.min(timeout / 2)), if keep_awake => Event::LookAtKeepAwake,
            () = self.activity.idle_for(timeout), if reaped => Event::Idle,
        }
    }

    /// Waits for a guest to answer. What is asked of the capsule meanwhile interrupts it, and it is begun again.
    async fn listen(&mut self, unheard: &mut UnheardCapsule) -> Event {
        let process = unheard.machine.process().clone();
        let (engine, spec, token) = (&*self.engine, &*self.spec, &self.record.token);
        let request = RequestId::new();
        let handover = Handover { engine, spec, token, request: &request, goes_on: true };
        tokio::select! {
            biased;
            exit = process.exited() => Event::VmmDied(exit),
            request = self.queue.recv() => request.map_or(Event::Abandoned, Event::Request),
            outcome = unheard.wait(&handover) => Event::Heard(outcome),
        }
    }

    /// The view of this moment.
    pub fn view(&self) -> Arc<CapsuleView> {
        Arc::new(CapsuleView {
            spec: self.spec.clone(),
            state: self.record.state,
            cause: self.record.cause.clone(),
            timeout_sec: self.record.timeout_sec,
            revision: self.record.revision,
            started_at_ns: self.record.started_at_ns,
            last_active_at_ns: self.activity.last_ns(),
        })
    }

    /// Shows the state to everybody.
    pub fn publish(&self, running: Option<RunningHandle>, failure: Option<CapsuleError>) {
        let view = self.view();
        self.published.send_replace(Published { view: view.clone(), running, failure });
        self.shared.announce(view);
    }

    /// Enters a state: written first, then shown.
    pub async fn enter(&mut self, state: State, cause: Option<Cause>, durability: Durability) {
        self.record.enter(state, cause);
        self.record.last_active_at_ns = self.activity.last_ns();
        self.store(durability).await;
        // The handle of a running capsule is published by who made it.
        if state != State::Running {
            self.publish(None, None);
        }
    }

    /// A disk that cannot take a record does not stop the capsule: the next agent sees the state before.
    pub async fn store(&self, durability: Durability) {
        if let Err(error) = self.file.store(&self.record, durability).await {
            tracing::error!(error = %crate::report(&error), "the record was not written");
        }
    }

    pub fn answer(&self, reply: Reply, outcome: Result<(), CapsuleError>) {
        // Nobody may be waiting any more; the outcome is published all the same.
        let _gone = reply.send(outcome.map(|()| self.view()));
    }

    async fn set_timeout(&mut self, timeout_sec: u32, body: &Body) -> Result<(), CapsuleError> {
        self.activity.touch();
        if self.record.timeout_sec != timeout_sec {
            self.record.timeout_sec = timeout_sec;
            self.record.revision += 1;
            let durability =
                if matches!(body, Body::Running(_)) { Durability::Process } else { Durability::Power };
            self.store(durability).await;
            self.publish(handle_of(body), None);
        }
        Ok(())
    }

    async fn leave(mut self, body: &Body, reply: Reply) {
        if let Body::Running(running) = body {
            running.handle.life.end(LifeEnd::AgentStopping);
            self.engine.meters.flush(self.spec.id).await;
            self.record.last_active_at_ns = self.activity.last_ns();
            self.store(Durability::Process).await;
        }
        self.answer(reply, Ok(()));
    }

    async fn idle(&mut self, body: Body) -> Body {
        let cause = Cause::new("IDLE_TIMEOUT", format!("no activity for {} s", self.record.timeout_sec));
        let span = tracing::info_span!("idle");
        let body = self.pause(body, Some(cause), &RequestId::new(), None).instrument(span).await;
        if matches!(body, Body::Running(_)) {
            // Not again at once: a whole timeout later.
            self.activity.touch();
        }
        body
    }

    /// Finds out which of the processes that keep this capsule awake still run.
    async fn look_at_keep_awake(&mut self, body: &Body) {
        let Body::Running(running) = body else { return };
        let request = running.handle.guest.request(envd::ListRequest {}, &RequestId::new());
        let mut processes = running.handle.guest.processes();
        let listed = tokio::time::timeout(KEEP_AWAKE_PERIOD, processes.list(request)).await;
        // A guest too busy to answer is not idle.
        let Ok(Ok(listed)) = listed else { return self.activity.touch() };
        let alive = listed.into_inner().processes.into_iter().filter(|process| process.running);
        let alive: std::collections::HashSet<u32> = alive.map(|process| process.pid).collect();
        let before = self.record.keep_awake.len();
        self.record.keep_awake.retain(|pid| alive.contains(pid));
        if !self.record.keep_awake.is_empty() {
            self.activity.touch();
        }
        if self.record.keep_awake.len() != before {
            self.store(Durability::Process).await;
        }
    }

    /// Leaves a stone behind and answers those who came too late.
    async fn bury(mut self) {
        // What failed to start is forgotten already, and may have a successor by now.
        if self.published.borrow().failure.is_none() {
            self.shared.bury(self.spec.id, self.view(), false);
        }
        self.queue.close();
        while let Some(request) = self.queue.recv().await {
            let id = self.spec.id;
            match request {
                Request::Destroy { reply } | Request::Leave { reply } => self.answer(reply, Ok(())),
                Request::Pause { reply, .. }
                | Request::Resume { reply, .. }
                | Request::SetTimeout { reply, .. } => {
                    let (state, cause) = (self.record.state, self.record.cause.clone());
                    self.answer(reply, Err(CapsuleError::WrongState { id, state, cause }));
                }
                Request::Capture { reply, .. } => {
                    let (state, cause) = (self.record.state, self.record.cause.clone());
                    let _gone = reply.send(Err(CapsuleError::WrongState { id, state, cause }));
                }
                Request::KeepAwake { .. } => {}
            }
        }
    }
}

/// The clock of a guest stands still with its vCPUs. Told beside the driver: a guest may stand still again before it has
/// heard, and only the driver lets it go on.
fn give_time(body: &Body, stood: Duration) {
    let Body::Running(running) = body else { return };
    let lost_ns = i64::try_from(stood.as_nanos()).unwrap_or(i64::MAX);
    let RunningHandle { guest, life, .. } = running.handle.clone();
    tokio::spawn(async move {
        let request = RequestId::new();
        tokio::select! {
            () = guest.give_time(lost_ns, &request, TIME_TAKEN) => {}
            _over = life.ended() => {}
        }
    });
}

fn handle_of(body: &Body) -> Option<RunningHandle> {
    match body {
        Body::Running(running) => Some(running.handle.clone()),
        _ => None,
    }
}
