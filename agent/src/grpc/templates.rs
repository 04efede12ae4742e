//! Checkpoints, forks, and what a host keeps of templates.

use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;

use super::request::{Call, detached};
use super::service::AgentService;

pub async fn snapshot_capsule(
    _service: &AgentService,
    _request: Request<agent::SnapshotCapsuleRequest>,
) -> Result<Response<agent::SnapshotCapsuleResponse>, Status> {
    Err(Status::unimplemented("SnapshotCapsule"))
}

pub async fn fork_capsule(
    _service: &AgentService,
    _request: Request<agent::ForkCapsuleRequest>,
) -> Result<Response<agent::ForkCapsuleResponse>, Status> {
    Err(Status::unimplemented("ForkCapsule"))
}

pub async fn delete_template(
    _service: &AgentService,
    _request: Request<agent::DeleteTemplateRequest>,
) -> Result<Response<agent::DeleteTemplateResponse>, Status> {
    Err(Status::unimplemented("DeleteTemplate"))
}

pub async fn drain(
    service: &AgentService,
    request: Request<agent::DrainRequest>,
) -> Result<Response<agent::DrainResponse>, Status> {
    let Call { span, .. } = Call::of("Drain", request);
    let capsules = service.capsules.clone();
    detached(span, async move {
        let paused = capsules.drain().await?;
        Ok(agent::DrainResponse { paused: paused.try_into().unwrap_or(u32::MAX) })
    })
    .await
}
