//! Checkpoints, forks, and what a host keeps of templates.

use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;

use super::request::{Call, detached};
use super::service::AgentService;
use crate::capsule::{Forked, delete_template as delete, parse_capsule_id, parse_template_id};

pub async fn snapshot_capsule(
    service: &AgentService,
    request: Request<agent::SnapshotCapsuleRequest>,
) -> Result<Response<agent::SnapshotCapsuleResponse>, Status> {
    let Call { message, id, span } = Call::of("SnapshotCapsule", request);
    let capsules = service.capsules.clone();
    detached(span, async move {
        let capsule = parse_capsule_id(&message.capsule_id)?;
        let template = parse_template_id(&message.template_id)?;
        let made = capsules.checkpoint(capsule, template, id).await?;
        Ok(agent::SnapshotCapsuleResponse {
            vcpus: made.vcpus,
            memory_mib: made.memory_mib,
            disk_mib: made.disk_mib,
            written_bytes: made.written_bytes,
            stopped_us: made.stopped_us,
        })
    })
    .await
}

pub async fn fork_capsule(
    service: &AgentService,
    request: Request<agent::ForkCapsuleRequest>,
) -> Result<Response<agent::ForkCapsuleResponse>, Status> {
    let Call { message, id, span } = Call::of("ForkCapsule", request);
    let capsules = service.capsules.clone();
    detached(span, async move {
        let parent = parse_capsule_id(&message.capsule_id)?;
        let children = message.child_ids.iter().map(|child| parse_capsule_id(child));
        let children = children.collect::<Result<_, _>>()?;
        let forked = capsules.fork(parent, children, message.inherit_secrets, id).await?;
        let Forked { children, stopped } = forked;
        Ok(agent::ForkCapsuleResponse {
            capsules: children.iter().map(|child| child.to_proto()).collect(),
            stopped_us: u64::try_from(stopped.as_micros()).unwrap_or(u64::MAX),
        })
    })
    .await
}

pub async fn delete_template(
    service: &AgentService,
    request: Request<agent::DeleteTemplateRequest>,
) -> Result<Response<agent::DeleteTemplateResponse>, Status> {
    let Call { message, span, .. } = Call::of("DeleteTemplate", request);
    let engine = service.capsules.engine().clone();
    detached(span, async move {
        let template = parse_template_id(&message.template_id)?;
        engine.tasks.track_future(delete(&engine, template)).await?;
        Ok(agent::DeleteTemplateResponse {})
    })
    .await
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
