//! The calls of `wrenn.agent.v1.Agent`.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::agent_server::Agent;
use wrenn_proto::envd::v1 as envd;

use super::relay::{relay, within_life};
use super::request::{Call, detached};
use super::status::status;
use super::waited::carried;
use super::watch::watch;
use crate::capsule::{CapsuleError, CapsuleRegistry, CapsuleSpec, Running, parse_capsule_id};
use crate::host::HostProbe;

pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over one host's capsules.
#[derive(Clone)]
pub struct AgentService {
    pub capsules: Arc<CapsuleRegistry>,
    pub probe: Arc<HostProbe>,
    /// Ends the streams that would otherwise keep the server from stopping.
    pub stop: CancellationToken,
}

impl AgentService {
    /// The capsule named by `id`, if it runs; in use until the answer is dropped.
    pub fn running(&self, id: &str) -> Result<Running, Status> {
        parse_capsule_id(id).and_then(|id| self.capsules.running(id)).map_err(|error| status(&error))
    }

    /// The same for those who only look: it may fall asleep meanwhile.
    pub fn look_into(&self, id: &str) -> Result<Running, Status> {
        parse_capsule_id(id).and_then(|id| self.capsules.look_into(id)).map_err(|error| status(&error))
    }
}

/// The part of a request that a client may not leave out.
pub fn required<T>(part: Option<T>, field: &'static str) -> Result<T, Status> {
    part.ok_or_else(|| status(&CapsuleError::Invalid { field, message: format!("{field} is missing") }))
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn info(&self, _request: Request<agent::InfoRequest>) -> Result<Response<agent::HostInfo>, Status> {
        let specs = self.probe.specs();
        Ok(Response::new(agent::HostInfo {
            agent_version: crate::VERSION.to_owned(),
            arch: specs.arch.to_owned(),
            cpus: specs.cpus,
            memory_mib: specs.memory_mib,
            memory_available_mib: specs.memory_available_mib,
            disk_mib: specs.disk_mib,
            disk_available_mib: specs.disk_available_mib,
            vmm: specs.vmm,
            disk_store: specs.disk_store,
            capsules_running: self.capsules.count_running().try_into().unwrap_or(u32::MAX),
            slots_free: self.capsules.engine().slots.free().try_into().unwrap_or(u32::MAX),
        }))
    }

    async fn create_capsule(
        &self,
        request: Request<agent::CreateCapsuleRequest>,
    ) -> Result<Response<agent::Capsule>, Status> {
        let Call { message, id, span } = Call::of("CreateCapsule", request);
        let capsules = self.capsules.clone();
        detached(span, async move {
            let timeout_sec = message.timeout_sec;
            let spec = CapsuleSpec::from_request(message, &capsules.engine().limits)?;
            Ok(capsules.create(spec, timeout_sec, id).await?.to_proto())
        })
        .await
    }

    async fn get_capsule(
        &self,
        request: Request<agent::CapsuleRef>,
    ) -> Result<Response<agent::Capsule>, Status> {
        let id = parse_capsule_id(&request.get_ref().capsule_id);
        let view = id.and_then(|id| self.capsules.get(id)).map_err(|error| status(&error))?;
        Ok(Response::new(view.to_proto()))
    }

    async fn list_capsules(
        &self,
        _request: Request<agent::ListCapsulesRequest>,
    ) -> Result<Response<agent::ListCapsulesResponse>, Status> {
        let capsules = self.capsules.list().iter().map(|view| view.to_proto()).collect();
        Ok(Response::new(agent::ListCapsulesResponse { capsules }))
    }

    type WatchCapsulesStream = BoxStream<agent::CapsuleEvent>;

    async fn watch_capsules(
        &self,
        _request: Request<agent::WatchCapsulesRequest>,
    ) -> Result<Response<Self::WatchCapsulesStream>, Status> {
        Ok(Response::new(Box::pin(watch(self.capsules.clone(), self.stop.clone()))))
    }

    async fn pause_capsule(
        &self,
        request: Request<agent::CapsuleRef>,
    ) -> Result<Response<agent::Capsule>, Status> {
        let Call { message, id, span } = Call::of("PauseCapsule", request);
        let capsules = self.capsules.clone();
        detached(span, async move {
            Ok(capsules.pause(parse_capsule_id(&message.capsule_id)?, id).await?.to_proto())
        })
        .await
    }

    async fn resume_capsule(
        &self,
        request: Request<agent::CapsuleRef>,
    ) -> Result<Response<agent::Capsule>, Status> {
        let Call { message, id, span } = Call::of("ResumeCapsule", request);
        let capsules = self.capsules.clone();
        detached(span, async move {
            Ok(capsules.resume(parse_capsule_id(&message.capsule_id)?, id).await?.to_proto())
        })
        .await
    }

    async fn destroy_capsule(
        &self,
        request: Request<agent::CapsuleRef>,
    ) -> Result<Response<agent::DestroyCapsuleResponse>, Status> {
        let Call { message, span, .. } = Call::of("DestroyCapsule", request);
        let capsules = self.capsules.clone();
        detached(span, async move {
            capsules.destroy(parse_capsule_id(&message.capsule_id)?).await?;
            Ok(agent::DestroyCapsuleResponse {})
        })
        .await
    }

    async fn ping_capsule(
        &self,
        request: Request<agent::CapsuleRef>,
    ) -> Result<Response<agent::Capsule>, Status> {
        let id = parse_capsule_id(&request.get_ref().capsule_id);
        let view = id.and_then(|id| self.capsules.ping(id)).map_err(|error| status(&error))?;
        Ok(Response::new(view.to_proto()))
    }

    async fn set_timeout(
        &self,
        request: Request<agent::SetTimeoutRequest>,
    ) -> Result<Response<agent::Capsule>, Status> {
        let Call { message, span, .. } = Call::of("SetTimeout", request);
        let capsules = self.capsules.clone();
        detached(span, async move {
            let id = parse_capsule_id(&message.capsule_id)?;
            Ok(capsules.set_timeout(id, message.timeout_sec).await?.to_proto())
        })
        .await
    }

    type ExecStream = BoxStream<envd::ProcessEvent>;

    async fn exec(
        &self,
        request: Request<agent::StartProcessRequest>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let Call { message, id, .. } = Call::of("Exec", request);
        let running = self.running(&message.capsule_id)?;
        let start = running.handle.guest.request(required(message.process, "process")?, &id);
        let mut processes = running.handle.guest.processes();
        let events: Streaming<_> = within_life(&running, processes.exec(start)).await?.into_inner();
        Ok(Response::new(Box::pin(relay(running, events, envd::OutputCursor::default(), id))))
    }

    async fn start_process(
        &self,
        request: Request<agent::StartProcessRequest>,
    ) -> Result<Response<envd::StartResponse>, Status> {
        let Call { message, id, span } = Call::of("StartProcess", request);
        let running = self.running(&message.capsule_id)?;
        let process = required(message.process, "process")?;
        let capsules = self.capsules.clone();
        // To its end, so that a process that was started is also watched over.
        let started = tokio::spawn(carried(tracing::Instrument::instrument(
            async move {
                let start = running.handle.guest.request(process, &id);
                let mut processes = running.handle.guest.processes();
                let started = within_life(&running, processes.start(start)).await?.into_inner();
                if let Some(process) = started.process.as_ref().filter(|_| message.keep_awake) {
                    capsules.keep_awake(running.id, process.pid).await.map_err(|error| status(&error))?;
                }
                Ok(Response::new(started))
            },
            span,
        )));
        started.await.unwrap_or_else(|_| Err(Status::internal("the agent failed; its log says more")))
    }

    type FollowProcessStream = BoxStream<envd::ProcessEvent>;

    async fn follow_process(
        &self,
        request: Request<agent::FollowProcessRequest>,
    ) -> Result<Response<Self::FollowProcessStream>, Status> {
        let Call { message, id, .. } = Call::of("FollowProcess", request);
        let running = self.running(&message.capsule_id)?;
        let process = required(message.process, "process")?;
        let after = process.after.unwrap_or_default();
        let follow = running.handle.guest.request(process, &id);
        let mut processes = running.handle.guest.processes();
        let events = within_life(&running, processes.follow(follow)).await?.into_inner();
        Ok(Response::new(Box::pin(relay(running, events, after, id))))
    }

    type ListProcessesStream = BoxStream<agent::CapsuleProcesses>;

    async fn list_processes(
        &self,
        request: Request<agent::CapsuleRefs>,
    ) -> Result<Response<Self::ListProcessesStream>, Status> {
        super::processes::list_processes(self.clone(), request)
    }

    async fn signal_process(
        &self,
        request: Request<agent::SignalProcessRequest>,
    ) -> Result<Response<envd::SignalResponse>, Status> {
        let Call { message, id, .. } = Call::of("SignalProcess", request);
        let running = self.running(&message.capsule_id)?;
        let signal = running.handle.guest.request(required(message.process, "process")?, &id);
        let mut processes = running.handle.guest.processes();
        Ok(Response::new(within_life(&running, processes.signal(signal)).await?.into_inner()))
    }

    async fn write_input(
        &self,
        request: Request<agent::WriteInputRequest>,
    ) -> Result<Response<envd::InputResponse>, Status> {
        let Call { message, id, .. } = Call::of("WriteInput", request);
        let running = self.running(&message.capsule_id)?;
        let input = running.handle.guest.request(required(message.input, "input")?, &id);
        let mut processes = running.handle.guest.processes();
        Ok(Response::new(within_life(&running, processes.write_input(input)).await?.into_inner()))
    }

    async fn close_input(
        &self,
        request: Request<agent::CloseInputRequest>,
    ) -> Result<Response<envd::InputResponse>, Status> {
        let Call { message, id, .. } = Call::of("CloseInput", request);
        let running = self.running(&message.capsule_id)?;
        let input = running.handle.guest.request(required(message.input, "input")?, &id);
        let mut processes = running.handle.guest.processes();
        Ok(Response::new(within_life(&running, processes.close_input(input)).await?.into_inner()))
    }

    async fn resize_pty(
        &self,
        request: Request<agent::ResizePtyRequest>,
    ) -> Result<Response<envd::ResizeResponse>, Status> {
        let Call { message, id, .. } = Call::of("ResizePty", request);
        let running = self.running(&message.capsule_id)?;
        let resize = running.handle.guest.request(required(message.pty, "pty")?, &id);
        let mut processes = running.handle.guest.processes();
        Ok(Response::new(within_life(&running, processes.resize(resize)).await?.into_inner()))
    }

    async fn snapshot_capsule(
        &self,
        request: Request<agent::SnapshotCapsuleRequest>,
    ) -> Result<Response<agent::SnapshotCapsuleResponse>, Status> {
        super::templates::snapshot_capsule(self, request).await
    }

    async fn fork_capsule(
        &self,
        request: Request<agent::ForkCapsuleRequest>,
    ) -> Result<Response<agent::ForkCapsuleResponse>, Status> {
        super::templates::fork_capsule(self, request).await
    }

    async fn flatten_capsule(
        &self,
        request: Request<agent::FlattenCapsuleRequest>,
    ) -> Result<Response<agent::FlattenCapsuleResponse>, Status> {
        super::templates::flatten_capsule(self, request).await
    }

    async fn golden_status(
        &self,
        request: Request<agent::GoldenStatusRequest>,
    ) -> Result<Response<agent::GoldenStatusResponse>, Status> {
        super::templates::golden_status(self, request).await
    }

    async fn delete_template(
        &self,
        request: Request<agent::DeleteTemplateRequest>,
    ) -> Result<Response<agent::DeleteTemplateResponse>, Status> {
        super::templates::delete_template(self, request).await
    }

    async fn drain(
        &self,
        request: Request<agent::DrainRequest>,
    ) -> Result<Response<agent::DrainResponse>, Status> {
        super::templates::drain(self, request).await
    }

    async fn stat_file(
        &self,
        request: Request<agent::StatFileRequest>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        super::files::stat_file(self, request).await
    }

    async fn list_directory(
        &self,
        request: Request<agent::ListDirectoryRequest>,
    ) -> Result<Response<envd::ListDirectoryResponse>, Status> {
        super::files::list_directory(self, request).await
    }

    async fn make_directory(
        &self,
        request: Request<agent::MakeDirectoryRequest>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        super::files::make_directory(self, request).await
    }

    async fn move_file(
        &self,
        request: Request<agent::MoveFileRequest>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        super::files::move_file(self, request).await
    }

    async fn remove_file(
        &self,
        request: Request<agent::RemoveFileRequest>,
    ) -> Result<Response<envd::RemoveResponse>, Status> {
        super::files::remove_file(self, request).await
    }

    type ReadFileStream = BoxStream<agent::ReadFileResponse>;

    async fn read_file(
        &self,
        request: Request<agent::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        super::files::read_file(self, request).await
    }

    async fn write_file(
        &self,
        request: Request<Streaming<agent::WriteFileRequest>>,
    ) -> Result<Response<envd::StatResponse>, Status> {
        super::files::write_file(self, request).await
    }

    type WatchDirectoryStream = BoxStream<envd::FileEvent>;

    async fn watch_directory(
        &self,
        request: Request<agent::WatchDirectoryRequest>,
    ) -> Result<Response<Self::WatchDirectoryStream>, Status> {
        super::files::watch_directory(self, request).await
    }

    type ListPortsStream = BoxStream<agent::CapsulePorts>;

    async fn list_ports(
        &self,
        request: Request<agent::CapsuleRefs>,
    ) -> Result<Response<Self::ListPortsStream>, Status> {
        super::ports::list_ports(self.clone(), request)
    }

    type WatchPortsStream = BoxStream<envd::PortEvent>;

    async fn watch_ports(
        &self,
        request: Request<agent::CapsuleRef>,
    ) -> Result<Response<Self::WatchPortsStream>, Status> {
        super::ports::watch_ports(self, request).await
    }

    type GetMetricsStream = BoxStream<agent::CapsuleMetrics>;

    async fn get_metrics(
        &self,
        request: Request<agent::GetMetricsRequest>,
    ) -> Result<Response<Self::GetMetricsStream>, Status> {
        super::metrics::get_metrics(self.clone(), request)
    }

    type WatchMetricsStream = BoxStream<agent::MetricPoint>;

    async fn watch_metrics(
        &self,
        request: Request<agent::CapsuleRef>,
    ) -> Result<Response<Self::WatchMetricsStream>, Status> {
        super::metrics::watch_metrics(self, request).await
    }
}
