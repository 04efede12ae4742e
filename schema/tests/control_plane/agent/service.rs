//! The contract, answered from what the stage holds.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wrenn_proto::{
    FIELD, GUEST_WAITED,
    agent::v1::{
        self as agent, Capsule, CapsuleRef, CapsuleRefs, CapsuleState, Failure, agent_server::Agent,
        capsule_event::Event,
    },
    envd::v1::{self as envd, file_event, port_event, process_event},
};

use super::{
    Stage,
    files::{self, Reading, Watching},
    gauges::{Points, PortEvents, point, watch_metrics, watch_ports},
    guest::{Events, exited, output, play, process},
};

/// How long the guest takes to send a signal, as its host says. In microseconds.
pub const SIGNAL_TOOK_US: u64 = 1500;

#[derive(Clone)]
pub struct Service {
    pub stage: Arc<Mutex<Stage>>,
    pub events: broadcast::Sender<Capsule>,
    pub port_events: broadcast::Sender<port_event::Event>,
    pub file_events: broadcast::Sender<file_event::Event>,
}

/// What is said of several capsules.
pub type Each<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Says of each capsule what it is asked for, or what went wrong.
fn each<T: Default, M>(
    capsules: Vec<String>,
    ask: impl Fn(&str) -> Result<T, Status>,
    message: impl Fn(String, Option<Failure>, T) -> M,
) -> Response<Each<M>> {
    let said: Vec<_> = capsules
        .into_iter()
        .map(|id| match ask(&id) {
            Ok(answer) => Ok(message(id, None, answer)),
            Err(status) => {
                let (code, text) = (status.code().into(), status.message().to_owned());
                let failure = Failure { code, message: text, ..Default::default() };
                Ok(message(id, Some(failure), T::default()))
            }
        })
        .collect();
    Response::new(tokio_stream::iter(said))
}

/// Counts a writing that did not come to its end.
struct Unfinished(Option<Arc<Mutex<Stage>>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(stage) = &self.0 {
            stage.lock().unwrap_or_else(PoisonError::into_inner).files.broken_off += 1;
        }
    }
}

impl Service {
    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(&self, call: &'static str) -> Result<(), Status> {
        let gate = {
            let mut stage = self.stage();
            stage.calls.push(call);
            if let Some(status) = stage.refusals.remove(call) {
                return Err(status);
            }
            stage.gates.get(call).cloned()
        };
        if let Some(gate) = gate {
            gate.acquire().await.expect("the gate stays").forget();
        }
        Ok(())
    }

    fn change(&self, id: &str, state: CapsuleState) -> Result<Response<Capsule>, Status> {
        let mut stage = self.stage();
        let capsule =
            stage.capsules.get_mut(id).ok_or_else(|| Status::not_found(format!("no capsule {id}")))?;
        if capsule.state() != state {
            capsule.set_state(state);
            capsule.revision += 1;
        }
        capsule.last_active_at_ns += 120_000_000_000;
        let capsule = capsule.clone();
        drop(stage);
        let _ = self.events.send(capsule.clone());
        Ok(Response::new(capsule))
    }

    fn running(&self, id: &str) -> Result<(), Status> {
        match self.stage().capsules.get(id).map(Capsule::state) {
            Some(CapsuleState::Running) => Ok(()),
            Some(_) => Err(Status::failed_precondition("the capsule is not running")),
            None => Err(Status::not_found(format!("no capsule {id}"))),
        }
    }
}

#[tonic::async_trait]
impl Agent for Service {
    type WatchCapsulesStream = ReceiverStream<Result<agent::CapsuleEvent, Status>>;
    type ExecStream = Events;
    type FollowProcessStream = Events;
    type ReadFileStream = Reading;
    type WatchDirectoryStream = Watching;
    type WatchPortsStream = PortEvents;
    type WatchMetricsStream = Points;
    type ListProcessesStream = Each<agent::CapsuleProcesses>;
    type ListPortsStream = Each<agent::CapsulePorts>;
    type GetMetricsStream = Each<agent::CapsuleMetrics>;

    async fn info(&self, _: Request<agent::InfoRequest>) -> Result<Response<agent::HostInfo>, Status> {
        Ok(Response::new(agent::HostInfo::default()))
    }

    async fn create_capsule(
        &self,
        request: Request<agent::CreateCapsuleRequest>,
    ) -> Result<Response<Capsule>, Status> {
        assert!(request.metadata().contains_key(wrenn_proto::REQUEST_ID), "the request's id comes along");
        self.enter("create").await?;
        let request = request.into_inner();
        let capsule = Capsule {
            id: request.capsule_id.clone(),
            team_id: request.team_id.clone(),
            template_id: request.template_id.clone(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disk_mib: request.disk_mib,
            timeout_sec: request.timeout_sec,
            revision: 1,
            started_at_ns: chrono::Utc::now().timestamp_nanos_opt().expect("a sane clock"),
            ..Default::default()
        };
        {
            let mut stage = self.stage();
            stage.capsules.entry(capsule.id.clone()).or_insert(capsule);
            stage.created.push(request.clone());
        }
        self.change(&request.capsule_id, CapsuleState::Running)
    }

    async fn get_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("get").await?;
        let id = request.into_inner().capsule_id;
        let found = self.stage().capsules.get(&id).cloned();
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("no capsule {id}")))
    }

    async fn list_capsules(
        &self,
        _: Request<agent::ListCapsulesRequest>,
    ) -> Result<Response<agent::ListCapsulesResponse>, Status> {
        self.enter("list").await?;
        let capsules = self.stage().capsules.values().cloned().collect();
        Ok(Response::new(agent::ListCapsulesResponse { capsules }))
    }

    async fn watch_capsules(
        &self,
        _: Request<agent::WatchCapsulesRequest>,
    ) -> Result<Response<Self::WatchCapsulesStream>, Status> {
        self.enter("watch").await?;
        let mut changes = self.events.subscribe();
        let present: Vec<Capsule> = self.stage().capsules.values().cloned().collect();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let event = |event| Ok(agent::CapsuleEvent { event: Some(event) });
            for capsule in present {
                if sender.send(event(Event::Capsule(capsule))).await.is_err() {
                    return;
                }
            }
            let mut last = sender.send(event(Event::Synced(agent::Synced {}))).await;
            while last.is_ok() {
                let changed = tokio::select! {
                    changed = changes.recv() => changed,
                    () = sender.closed() => return,
                };
                let Ok(capsule) = changed else { return };
                last = sender.send(event(Event::Capsule(capsule))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn pause_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("pause").await?;
        self.change(&request.into_inner().capsule_id, CapsuleState::Paused)
    }

    async fn resume_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("resume").await?;
        self.change(&request.into_inner().capsule_id, CapsuleState::Running)
    }

    async fn destroy_capsule(
        &self,
        request: Request<CapsuleRef>,
    ) -> Result<Response<agent::DestroyCapsuleResponse>, Status> {
        self.enter("destroy").await?;
        self.stage().capsules.remove(&request.into_inner().capsule_id);
        Ok(Response::new(agent::DestroyCapsuleResponse {}))
    }

    async fn ping_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("ping").await?;
        let id = request.into_inner().capsule_id;
        self.running(&id)?;
        self.change(&id, CapsuleState::Running)
    }

    async fn set_timeout(
        &self,
        request: Request<agent::SetTimeoutRequest>,
    ) -> Result<Response<Capsule>, Status> {
        self.enter("set_timeout").await?;
        let request = request.into_inner();
        let mut stage = self.stage();
        let capsule =
            stage.capsules.get_mut(&request.capsule_id).ok_or_else(|| Status::not_found("no capsule"))?;
        capsule.timeout_sec = request.timeout_sec;
        Ok(Response::new(capsule.clone()))
    }

    async fn exec(&self, request: Request<agent::StartProcessRequest>) -> Result<Response<Events>, Status> {
        self.enter("exec").await?;
        let request = request.into_inner();
        self.running(&request.capsule_id)?;
        let process = request.process.unwrap_or_default();
        if process.argv.first().is_some_and(|program| program == "/no/such/program") {
            let mut status = Status::not_found("there is no program /no/such/program");
            status.metadata_mut().insert(FIELD, "argv".parse().expect("a value"));
            return Err(status);
        }
        let line = process.argv.last().cloned().unwrap_or_default();
        Ok(Response::new(play(line, process.stdin.to_vec())))
    }

    async fn start_process(
        &self,
        request: Request<agent::StartProcessRequest>,
    ) -> Result<Response<envd::StartResponse>, Status> {
        self.enter("start").await?;
        let request = request.into_inner();
        self.running(&request.capsule_id)?;
        self.stage().started.extend(request.process);
        Ok(Response::new(envd::StartResponse { process: Some(process()) }))
    }

    async fn follow_process(
        &self,
        request: Request<agent::FollowProcessRequest>,
    ) -> Result<Response<Events>, Status> {
        self.enter("follow").await?;
        let after = request.into_inner().process.and_then(|process| process.after).unwrap_or_default();
        let (sender, receiver) = mpsc::channel(4);
        let from = after.stdout.unwrap_or(0);
        tokio::spawn(async move {
            let gap = envd::ProcessGap { stream: envd::OutputStream::Stdout.into(), from, to: from + 5 };
            let gap = envd::ProcessEvent { event: Some(process_event::Event::Gap(gap)) };
            // Terminals say nothing more, and stay open.
            if after.pty.is_some() && sender.send(Ok(gap.clone())).await.is_ok() {
                return sender.closed().await;
            }
            let events =
                [gap, output(envd::OutputStream::Stdout, from + 5, b"tail".to_vec()), exited(Some(0), None)];
            for event in events {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_processes(
        &self,
        request: Request<CapsuleRefs>,
    ) -> Result<Response<Self::ListProcessesStream>, Status> {
        self.enter("processes").await?;
        let size = self.stage().size;
        let ask = |id: &str| self.running(id).map(|()| vec![envd::Process { size, ..process() }]);
        Ok(each(request.into_inner().capsule_ids, ask, |capsule_id, failure, processes| {
            agent::CapsuleProcesses { capsule_id, failure, processes }
        }))
    }

    async fn signal_process(
        &self,
        request: Request<agent::SignalProcessRequest>,
    ) -> Result<Response<envd::SignalResponse>, Status> {
        self.enter("signal").await?;
        let signal = request.into_inner().process.unwrap_or_default();
        let selector = signal.selector.and_then(|selector| selector.by);
        let known = [envd::selector::By::Pid(7), envd::selector::By::Tag(process().tag)];
        if !selector.is_some_and(|selector| known.contains(&selector)) {
            let mut status = Status::not_found("there is no such process");
            status.metadata_mut().insert(FIELD, "selector".parse().expect("a value"));
            return Err(status);
        }
        let process = envd::Process { running: false, signal: Some(signal.signal), ..process() };
        let mut response = Response::new(envd::SignalResponse { process: Some(process) });
        response.metadata_mut().insert(GUEST_WAITED, SIGNAL_TOOK_US.into());
        Ok(response)
    }

    async fn write_input(
        &self,
        request: Request<agent::WriteInputRequest>,
    ) -> Result<Response<envd::InputResponse>, Status> {
        self.enter("write").await?;
        let input = request.into_inner().input.unwrap_or_default();
        let next_sequence = input.sequence + input.data.len() as u64;
        Ok(Response::new(envd::InputResponse { next_sequence }))
    }

    async fn close_input(
        &self,
        _: Request<agent::CloseInputRequest>,
    ) -> Result<Response<envd::InputResponse>, Status> {
        self.enter("close").await?;
        Ok(Response::new(envd::InputResponse { next_sequence: 9 }))
    }

    async fn resize_pty(
        &self,
        request: Request<agent::ResizePtyRequest>,
    ) -> Result<Response<envd::ResizeResponse>, Status> {
        self.enter("resize").await?;
        self.stage().size = request.into_inner().pty.and_then(|pty| pty.size);
        Ok(Response::new(envd::ResizeResponse {}))
    }

    async fn snapshot_capsule(
        &self,
        request: Request<agent::SnapshotCapsuleRequest>,
    ) -> Result<Response<agent::SnapshotCapsuleResponse>, Status> {
        self.enter("snapshot").await?;
        let request = request.into_inner();
        let mut stage = self.stage();
        let capsule =
            stage.capsules.get(&request.capsule_id).ok_or_else(|| Status::not_found("no capsule"))?;
        let made = agent::SnapshotCapsuleResponse {
            vcpus: capsule.vcpus.max(1),
            memory_mib: capsule.memory_mib.max(256),
            disk_mib: capsule.disk_mib.max(1024),
            written_bytes: 12_345,
            stopped_us: 900,
        };
        Ok(Response::new(*stage.templates.entry(request.template_id).or_insert(made)))
    }

    async fn fork_capsule(
        &self,
        request: Request<agent::ForkCapsuleRequest>,
    ) -> Result<Response<agent::ForkCapsuleResponse>, Status> {
        self.enter("fork").await?;
        let request = request.into_inner();
        let mut stage = self.stage();
        stage.forked.push(request.clone());
        let parent = stage
            .capsules
            .get(&request.capsule_id)
            .cloned()
            .ok_or_else(|| Status::not_found("no capsule"))?;
        let mut capsules = Vec::new();
        for id in request.child_ids {
            let mut child =
                Capsule { id: id.clone(), parent_id: parent.id.clone(), revision: 1, ..parent.clone() };
            child.set_state(CapsuleState::Running);
            child.started_at_ns = 1_700_000_000_000_000_000;
            let _ = self.events.send(child.clone());
            stage.capsules.insert(id, child.clone());
            capsules.push(child);
        }
        Ok(Response::new(agent::ForkCapsuleResponse { capsules, stopped_us: 800 }))
    }

    async fn delete_template(
        &self,
        request: Request<agent::DeleteTemplateRequest>,
    ) -> Result<Response<agent::DeleteTemplateResponse>, Status> {
        self.enter("delete_template").await?;
        self.stage().templates.remove(&request.into_inner().template_id);
        Ok(Response::new(agent::DeleteTemplateResponse {}))
    }

    async fn flatten_capsule(
        &self,
        _: Request<agent::FlattenCapsuleRequest>,
    ) -> Result<Response<agent::FlattenCapsuleResponse>, Status> {
        Err(Status::unimplemented("the control plane flattens nobody's disk"))
    }

    async fn golden_status(
        &self,
        _: Request<agent::GoldenStatusRequest>,
    ) -> Result<Response<agent::GoldenStatusResponse>, Status> {
        Err(Status::unimplemented("the control plane asks for no golden snapshots"))
    }

    async fn drain(&self, _: Request<agent::DrainRequest>) -> Result<Response<agent::DrainResponse>, Status> {
        Err(Status::unimplemented("the control plane drains nobody"))
    }

    async fn stat_file(
        &self,
        _: Request<agent::StatFileRequest>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        Err(Status::unimplemented("the control plane asks for nobody's stat"))
    }

    async fn list_directory(
        &self,
        request: Request<agent::ListDirectoryRequest>,
    ) -> Result<Response<envd::ListDirectoryResponse>, Status> {
        self.enter("list_directory").await?;
        let request = request.into_inner();
        self.running(&request.capsule_id)?;
        let directory = request.directory.unwrap_or_default();
        let entries = self.stage().files.list(&directory.path, directory.depth)?;
        Ok(Response::new(envd::ListDirectoryResponse { entries }))
    }

    async fn make_directory(
        &self,
        request: Request<agent::MakeDirectoryRequest>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        self.enter("make_directory").await?;
        let directory = request.into_inner().directory.unwrap_or_default();
        let entry = self.stage().files.make_directory(&directory.path)?;
        Ok(Response::new(envd::StatResponse { entry: Some(entry) }))
    }

    async fn move_file(
        &self,
        request: Request<agent::MoveFileRequest>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        self.enter("move_file").await?;
        let file = request.into_inner().file.unwrap_or_default();
        let entry = self.stage().files.rename(&file.from, &file.to)?;
        Ok(Response::new(envd::StatResponse { entry: Some(entry) }))
    }

    async fn remove_file(
        &self,
        request: Request<agent::RemoveFileRequest>,
    ) -> Result<Response<envd::RemoveResponse>, Status> {
        self.enter("remove_file").await?;
        let file = request.into_inner().file.unwrap_or_default();
        self.stage().files.remove(&file.path);
        Ok(Response::new(envd::RemoveResponse {}))
    }

    async fn read_file(&self, request: Request<agent::ReadFileRequest>) -> Result<Response<Reading>, Status> {
        self.enter("read_file").await?;
        let request = request.into_inner();
        self.running(&request.capsule_id)?;
        let file = request.file.unwrap_or_default();
        Ok(Response::new(files::read(&self.stage().files, &file)?))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<agent::WriteFileRequest>>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        self.enter("write_file").await?;
        // Also when the call is dropped because its other end is gone.
        let mut unfinished = Unfinished(Some(self.stage.clone()));
        let written = files::receive(request.into_inner()).await?;
        unfinished.0 = None;
        let entry = self.stage().files.finish(written);
        Ok(Response::new(envd::StatResponse { entry: Some(entry) }))
    }

    async fn watch_directory(
        &self,
        request: Request<agent::WatchDirectoryRequest>,
    ) -> Result<Response<Watching>, Status> {
        self.enter("watch_directory").await?;
        self.running(&request.into_inner().capsule_id)?;
        Ok(Response::new(files::watch(self.file_events.subscribe())))
    }

    async fn list_ports(
        &self,
        request: Request<CapsuleRefs>,
    ) -> Result<Response<Self::ListPortsStream>, Status> {
        self.enter("ports").await?;
        let ask = |id: &str| self.running(id).map(|()| self.stage().ports.clone());
        Ok(each(request.into_inner().capsule_ids, ask, |capsule_id, failure, ports| agent::CapsulePorts {
            capsule_id,
            failure,
            ports,
        }))
    }

    async fn watch_ports(&self, request: Request<CapsuleRef>) -> Result<Response<PortEvents>, Status> {
        self.enter("watch_ports").await?;
        self.running(&request.into_inner().capsule_id)?;
        let changes = self.port_events.subscribe();
        Ok(Response::new(watch_ports(self.stage().ports.clone(), changes)))
    }

    async fn get_metrics(
        &self,
        request: Request<agent::GetMetricsRequest>,
    ) -> Result<Response<Self::GetMetricsStream>, Status> {
        self.enter("metrics").await?;
        let request = request.into_inner();
        assert!(request.range_sec <= 24 * 60 * 60);
        // As many points as minutes were asked for, three at most.
        let points: Vec<_> = (1..=3.min(i64::from(request.range_sec / 60))).map(point).collect();
        let ask = |_: &str| Ok(points.clone());
        Ok(each(request.capsule_ids, ask, |capsule_id, failure, points| agent::CapsuleMetrics {
            capsule_id,
            failure,
            points,
        }))
    }

    async fn watch_metrics(&self, request: Request<CapsuleRef>) -> Result<Response<Points>, Status> {
        self.enter("watch_metrics").await?;
        self.running(&request.into_inner().capsule_id)?;
        Ok(Response::new(watch_metrics()))
    }
}
