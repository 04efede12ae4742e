//! How a capsule comes to life for the first time: from its template, from a machine made ahead, or as a copy of
//! another capsule.

use wrenn_vmm::driver::MemorySharing;
use wrenn_vmm::failpoint;
use wrenn_vmm::paths::CapsulePaths;
use wrenn_vmm::snapshot::Snapshot;

use super::driver::{Body, Driver, Origin};
use super::error::CapsuleError;
use super::fork::ForkPoint;
use super::golden::Goldens;
use super::handover::Handover;
use super::launch::Launch;
use super::parts::RunningCapsule;
use super::record::Durability;
use super::steps::Steps;
use super::template::Template;
use super::transitions::destroyed;
use super::view::{Cause, State};
use crate::clock::now_ns;
use crate::request_id::RequestId;
use crate::token::Token;

impl Driver {
    /// starting → running, or nothing at all.
    pub async fn create(&mut self, origin: Origin, request: &RequestId) -> Body {
        let mut steps = Steps::start("create");
        match self.start(origin, request, &mut steps).await {
            Ok(running) => {
                steps.finish();
                running
            }
            Err(error) => {
                let home = self.engine.paths.capsule(&self.spec.name());
                if let Err(left) = home.remove() {
                    tracing::error!(error = %left, "a failed create left something behind");
                }
                steps.fail(&error);
                let cause = match &error {
                    CapsuleError::Destroyed(_) => destroyed(),
                    error => Cause::new("CREATE_FAILED", crate::report(error)),
                };
                self.record.enter(State::Stopped, Some(cause));
                // Forgotten first: who tries again as soon as this is known tries anew.
                self.shared.bury(self.spec.id, self.view(), true);
                self.publish(None, Some(error));
                Body::Gone
            }
        }
    }

    async fn start(
        &mut self,
        origin: Origin,
        request: &RequestId,
        steps: &mut Steps,
    ) -> Result<Body, CapsuleError> {
        let engine = self.engine.clone();
        let _starting = engine.pool.starting();
        let running = match origin {
            Origin::Template => self.make_from_template(request, steps).await?,
            // Room was made for all copies together.
            Origin::Fork(point) => self.make_from_fork(&point, request, steps).await?,
        };
        let body = self.begin_serving(running).await;
        steps.done("record");
        Ok(body)
    }

    /// A home with a record in it, so that another agent finds what was begun.
    async fn settle_in(&self) -> Result<CapsulePaths, CapsuleError> {
        let home = self.engine.paths.capsule(&self.spec.name());
        home.create().map_err(CapsuleError::step("making the capsule's directories"))?;
        failpoint!("create.home").await.map_err(CapsuleError::step("making the capsule's directories"))?;
        let stored = self.file.store(&self.record, Durability::Process).await;
        stored.map_err(CapsuleError::step("writing the record"))?;
        failpoint!("create.recorded").await.map_err(CapsuleError::step("writing the record"))?;
        Ok(home)
    }

    async fn make_from_template(
        &self,
        request: &RequestId,
        steps: &mut Steps,
    ) -> Result<RunningCapsule, CapsuleError> {
        let home = self.settle_in().await?;
        if self.spec.from_snapshot {
            let Template { record, snapshot } = Template::of(&self.engine.paths, &self.spec).await?;
            steps.done("template");
            let _room = self.engine.room(1, self.spec.memory_mib, 0).await?;
            return self.launch(&home, &snapshot, Some(&record.token), request, steps).await;
        }
        let golden = tokio::select! {
            golden = Goldens::obtain(&self.engine, &self.spec) => golden?,
            () = self.cancelled.cancelled() => return Err(CapsuleError::Destroyed(self.spec.id)),
        };
        steps.done("golden");
        failpoint!("create.golden").await.map_err(CapsuleError::step("obtaining the golden snapshot"))?;
        // Only now: the machine that a golden snapshot is taken of needs as much, and is gone again.
        let _room = self.engine.room(1, self.spec.memory_mib, 0).await?;
        if let Some(member) = self.engine.pool.take(&golden, &self.spec) {
            let (engine, spec, token) = (&*self.engine, &*self.spec, &self.record.token);
            match member.hand_over(&Handover { engine, spec, token, request, goes_on: false }, &home).await {
                Ok(running) => {
                    steps.done("hand-over");
                    return Ok(running);
                }
                Err(error) => {
                    tracing::warn!(error = %crate::report(&error), "made ahead in vain; restoring");
                    steps.done("hand-over failed");
                }
            }
        }
        self.launch(&home, &golden, None, request, steps).await
    }

    /// Ready only together with its siblings.
    async fn make_from_fork(
        &self,
        point: &ForkPoint,
        request: &RequestId,
        steps: &mut Steps,
    ) -> Result<RunningCapsule, CapsuleError> {
        let failed = |error| point.siblings.fail(self.spec.id, error);
        let turn = point.starts.acquire().await.map_err(|_| failed(CapsuleError::Stopping))?;
        steps.done("turn");
        if let Some(error) = point.siblings.failure() {
            return Err(error);
        }
        let home = self.settle_in().await.map_err(failed)?;
        let launched = self.launch(&home, &point.snapshot, Some(&point.token), request, steps).await;
        let running = launched.map_err(failed)?;
        drop(turn);
        let ready = async {
            let restored = failpoint!("fork.restored").await;
            restored.map_err(|error| failed(CapsuleError::step("restoring a copy")(error)))?;
            point.siblings.ready().await?;
            failpoint!("fork.gathered").await.map_err(CapsuleError::step("gathering the copies"))
        };
        let ready = tokio::select! {
            ready = ready => ready,
            exit = running.machine.process().exited() => Err(failed(CapsuleError::VmmDied(exit.to_string()))),
            () = self.cancelled.cancelled() => Err(failed(CapsuleError::Destroyed(self.spec.id))),
        };
        steps.done("siblings");
        match ready {
            Ok(()) => Ok(running),
            Err(error) => {
                if let Err(left) = running.into_parts().dismantle(&self.engine).await {
                    tracing::error!(error = %left, "a copy that was not wanted left something behind");
                }
                Err(error)
            }
        }
    }

    /// A life from a snapshot that others start from too.
    async fn launch(
        &self,
        home: &CapsulePaths,
        snapshot: &Snapshot,
        known: Option<&Token>,
        request: &RequestId,
        steps: &mut Steps,
    ) -> Result<RunningCapsule, CapsuleError> {
        let launch = Launch {
            engine: &self.engine,
            spec: &self.spec,
            home,
            token: &self.record.token,
            known,
            snapshot,
            sharing: MemorySharing::Shared,
            rehearse: false,
            cancelled: &self.cancelled,
            request,
        };
        launch.run(steps).await
    }

    /// Written down and shown.
    pub async fn begin_serving(&mut self, running: RunningCapsule) -> Body {
        self.activity.touch();
        self.record.started_at_ns = now_ns();
        let body = self.serve(running, None).await;
        // Nobody could use it while it was written down.
        self.activity.touch();
        failpoint!(sure "launch.served").await;
        body
    }
}
