//! The transitions of a driver's state: each takes the body the capsule has and gives back the one it has then.

use std::path::Path;
use std::time::Duration;

use wrenn_vmm::disk::DiskView;
use wrenn_vmm::driver::MemorySharing;
use wrenn_vmm::failpoint;
use wrenn_vmm::process::ProcessExit;

use super::checkpoint::{self, Moment, Scope, TakeFailure, Taken};
use super::driver::{Body, Driver, Reply};
use super::error::{CapsuleError, Teardown, TeardownError};
use super::launch::Launch;
use super::life::LifeEnd;
use super::parts::{Parts, RunningCapsule};
use super::pause::{self, PauseFailure, PausedCapsule, Saved};
use super::record::Durability;
use super::steps::Steps;
use super::view::{Cause, State};
use crate::guest::Guest;
use crate::request_id::RequestId;

/// How long the end of a machine that does not answer may take to be noticed.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(200);

type Outcome = Result<(), CapsuleError>;

impl Driver {
    /// Into the state `running`: written, and open to calls.
    pub async fn serve(&mut self, running: RunningCapsule, cause: Option<Cause>) -> Body {
        self.record.machine = Some(running.record());
        self.enter(State::Running, cause, Durability::Process).await;
        self.publish(Some(running.handle.clone()), None);
        Body::Running(Box::new(running))
    }

    /// running → pausing → paused, or running again.
    ///
    /// Whoever asked is answered once the snapshot and the record are safe; the machine is taken apart
    /// after that, and before the next request.
    pub async fn pause(
        &mut self,
        body: Body,
        cause: Option<Cause>,
        request: &RequestId,
        reply: Option<Reply>,
    ) -> Body {
        let running = match body {
            Body::Running(running) => running,
            Body::Paused(_) => return self.answered(reply, body, Ok(())),
            other => return self.answered(reply, other, Err(self.wrong_state())),
        };
        let mut steps = Steps::start("pause");
        // New calls are refused from here on; those under way go on until the life ends.
        self.enter(State::Pausing, None, Durability::Process).await;
        failpoint!(sure "pause.announced").await;
        let saved =
            pause::save(&self.engine, &self.spec, &self.record.token, running, request, &mut steps).await;
        match saved {
            Ok(Saved { running, paused }) => {
                // Both at once: an agent that dies from here on finds a paused capsule and ends its machine.
                self.record.machine = None;
                self.enter(State::Paused, cause, Durability::Power).await;
                failpoint!(sure "pause.recorded").await;
                steps.done("record");
                let body = self.answered(reply, Body::Paused(paused), Ok(()));
                pause::release(&self.engine, running).await;
                failpoint!(sure "pause.released").await;
                steps.done("release");
                steps.finish();
                self.engine.meters.flush(self.spec.id).await;
                body
            }
            Err(PauseFailure::Running(running, error)) => {
                // The machine may have died under our hands: the exit watch tells, at once.
                steps.fail(&error);
                let body = self.serve(*running, None).await;
                self.answered(reply, body, Err(error))
            }
            Err(PauseFailure::Silent(running, error)) => {
                steps.fail(&error);
                self.record.machine = Some(running.record());
                self.enter(State::Running, None, Durability::Process).await;
                self.publish(None, None);
                let body = Body::Unheard(Box::new(running.unheard(self.engine.grace)));
                self.answered(reply, body, Err(error))
            }
            Err(PauseFailure::Stuck(running, error)) => {
                steps.fail(&error);
                let body = self.stuck(running, &error).await;
                self.answered(reply, body, Err(error))
            }
        }
    }

    fn answered(&self, reply: Option<Reply>, body: Body, outcome: Outcome) -> Body {
        if let Some(reply) = reply {
            self.answer(reply, outcome);
        }
        body
    }

    /// A capsule whose guest was silent so far: served, or in error as it was silent for too long.
    pub async fn heard(&mut self, body: Body, outcome: Result<Guest, CapsuleError>) -> Body {
        let Body::Unheard(unheard) = body else { return body };
        match outcome {
            Ok(guest) => {
                tracing::info!("its guest answers");
                self.serve(unheard.served(guest), None).await
            }
            Err(error) => {
                let error = crate::report(&error);
                tracing::error!(error, "its guest was silent for too long; its disk is kept");
                let cause = Cause::new("NOT_ADOPTED", format!("its guest was silent for too long: {error}"));
                self.give_up(unheard.into_parts(), cause).await
            }
        }
    }

    /// Ends a machine that cannot go on; its disk stays until the capsule is destroyed.
    async fn give_up(&mut self, parts: Parts, cause: Cause) -> Body {
        if let Err(error) = parts.dismantle_but_disk(&self.engine).await {
            tracing::error!(%error, "a stuck machine left something behind");
        }
        self.record.machine = None;
        self.enter(State::Error, Some(cause), Durability::Power).await;
        Body::Broken
    }

    /// paused → resuming → running, or paused as before.
    pub async fn resume(&mut self, body: Body, request: &RequestId) -> (Body, Outcome) {
        let PausedCapsule { snapshot } = match body {
            Body::Paused(paused) => paused,
            Body::Running(running) => return (Body::Running(running), Ok(())),
            other => return (other, Err(self.wrong_state())),
        };
        let mut steps = Steps::start("resume");
        let before = self.record.cause.clone();
        let engine = self.engine.clone();
        let _starting = engine.pool.starting();
        let outcome = match engine.room(1, self.spec.memory_mib, 0).await {
            Ok(_room) => {
                self.enter(State::Resuming, None, Durability::Process).await;
                let launch = Launch {
                    engine: &engine,
                    spec: &self.spec,
                    home: &engine.paths.capsule(&self.spec.name()),
                    token: &self.record.token,
                    known: Some(&self.record.token),
                    snapshot: &snapshot,
                    sharing: MemorySharing::Own,
                    rehearse: false,
                    cancelled: &self.cancelled,
                    request,
                };
                launch.run(&mut steps).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(running) => {
                let body = self.begin_serving(running).await;
                steps.done("record");
                steps.finish();
                (body, Ok(()))
            }
            Err(error) => {
                steps.fail(&error);
                if self.record.state != State::Paused {
                    self.enter(State::Paused, before, Durability::Power).await;
                }
                (Body::Paused(PausedCapsule { snapshot }), Err(error))
            }
        }
    }

    /// running → running, or paused → paused, with the moment written aside. The states in between are nobody's to
    /// see: the life goes on.
    pub async fn capture(
        &mut self,
        body: Body,
        what: (Scope, &Path),
        request: &RequestId,
    ) -> (Body, Result<Moment, CapsuleError>) {
        let mut steps = Steps::start("capture");
        let (body, taken) = match body {
            Body::Running(mut running) => {
                match checkpoint::of_running(&self.engine, &mut running, what, request, &mut steps).await {
                    Ok(taken) => (Body::Running(running), Ok(taken)),
                    Err(TakeFailure::Running(error)) => (Body::Running(running), Err(error)),
                    Err(TakeFailure::Stuck(error)) => (self.stuck(running, &error).await, Err(error)),
                }
            }
            Body::Paused(paused) => {
                let taken = checkpoint::of_paused(&self.engine, &paused.snapshot, what).await;
                (Body::Paused(paused), taken)
            }
            other => (other, Err(self.wrong_state())),
        };
        match &taken {
            Ok(_) => steps.finish(),
            Err(error) => steps.fail(error),
        }
        let moment = taken.map(|Taken { writer, stopped, written_bytes }| Moment {
            writer,
            stopped,
            written_bytes,
            token: self.record.token.clone(),
            keep_awake: self.record.keep_awake.clone(),
        });
        (body, moment)
    }

    /// The end of a machine whose vCPUs cannot be made to go on.
    async fn stuck(&mut self, running: Box<RunningCapsule>, error: &CapsuleError) -> Body {
        let process = running.machine.process().clone();
        match tokio::time::timeout(LAST_WORDS_TIMEOUT, process.exited()).await {
            Ok(exit) => self.vmm_died(Body::Running(running), exit).await,
            Err(_) => {
                let cause = Cause::new("PAUSE_FAILED", crate::report(error));
                running.handle.life.end(LifeEnd::Lost(cause.clone()));
                self.give_up(running.into_parts(), cause).await
            }
        }
    }

    /// Any state → stopping → stopped. What cannot be removed leaves the capsule in error.
    pub async fn destroy(&mut self, body: Body) -> (Body, Outcome) {
        let steps = Steps::start("destroy");
        if let Body::Running(running) = &body {
            running.handle.life.end(LifeEnd::Lost(destroyed()));
        }
        self.enter(State::Stopping, None, Durability::Process).await;
        failpoint!(sure "destroy.announced").await;
        match self.remove_all(body).await {
            Ok(()) => {
                steps.finish();
                self.record.enter(State::Stopped, Some(destroyed()));
                self.publish(None, None);
                (Body::Gone, Ok(()))
            }
            Err(error) => {
                let error = CapsuleError::step("destroying the capsule")(error);
                steps.fail(&error);
                let cause = Cause::new("DESTROY_FAILED", crate::report(&error));
                self.enter(State::Error, Some(cause), Durability::Process).await;
                (Body::Broken, Err(error))
            }
        }
    }

    /// running → stopped: the machine ended by itself.
    pub async fn vmm_died(&mut self, body: Body, exit: ProcessExit) -> Body {
        let words = match &body {
            Body::Running(running) => running.machine.last_words(),
            Body::Unheard(unheard) => unheard.machine.last_words(),
            _ => return body,
        };
        let message = match words.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) => format!("the VMM ended: {exit}; its last words: {line}"),
            None => format!("the VMM ended: {exit}"),
        };
        tracing::error!(message, "the capsule is lost");
        metrics::counter!("wrenn_capsules_lost_total").increment(1);
        let cause = Cause::new("VMM_DIED", message);
        if let Body::Running(running) = &body {
            running.handle.life.end(LifeEnd::Lost(cause.clone()));
        }
        self.enter(State::Stopping, Some(cause.clone()), Durability::Process).await;
        let left = self.remove_all(body).await;
        if let Err(error) = left {
            tracing::error!(%error, "a lost capsule left something behind");
        }
        self.record.enter(State::Stopped, Some(cause));
        self.publish(None, None);
        Body::Gone
    }

    /// Everything a capsule has on this host, past all errors.
    async fn remove_all(&mut self, body: Body) -> Result<(), TeardownError> {
        let mut teardown = Teardown::default();
        let parts = match body {
            Body::Running(running) => running.into_parts(),
            Body::Unheard(unheard) => unheard.into_parts(),
            Body::Paused(_) | Body::Broken | Body::Gone => Parts::default(),
        };
        teardown.merge(parts.dismantle(&self.engine).await);
        teardown.note("taking the machine apart", failpoint!("destroy.dismantled").await);
        let name = self.spec.name();
        let home = self.engine.paths.capsule(&name);
        // One that was kept when its machine ended in error.
        let view = DiskView { path: home.disk() };
        teardown.note("removing the disk", self.engine.disks.remove(view).await);
        let snapshot = self.engine.paths.snapshot(&name);
        teardown.note("removing the snapshot", remove_directory(&snapshot).await);
        teardown.note("removing the snapshot", failpoint!("destroy.forgotten").await);
        // The record goes last, so that an agent that dies here finds what is left.
        teardown.note("removing the capsule's directories", home.remove());
        teardown.note("removing the capsule's directories", failpoint!("destroy.removed").await);
        teardown.finish()
    }

    fn wrong_state(&self) -> CapsuleError {
        CapsuleError::wrong_state(self.spec.id, self.record.state, self.record.cause.clone())
    }
}

async fn remove_directory(path: &std::path::Path) -> std::io::Result<()> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub fn destroyed() -> Cause {
    Cause::new("DESTROYED", "the capsule was destroyed")
}
