//! Checkpoints, images and forks of capsules, and what a host keeps of templates.

use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;

use super::request::{Call, detached};
use super::service::AgentService;
use crate::capsule::{
    Forked, GoldenState, GoldenStatus, Image, delete_template as delete, parse_capsule_id, parse_team_id,
    parse_template_id,
};

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

pub async fn flatten_capsule(
    service: &AgentService,
    request: Request<agent::FlattenCapsuleRequest>,
) -> Result<Response<agent::FlattenCapsuleResponse>, Status> {
    let Call { message, id, span } = Call::of("FlattenCapsule", request);
    let capsules = service.capsules.clone();
    detached(span, async move {
        let capsule = parse_capsule_id(&message.capsule_id)?;
        let template = parse_template_id(&message.template_id)?;
        let team = parse_team_id(&message.template_team_id)?;
        let Image { disk_mib, allocated_bytes, stopped_us } =
            capsules.flatten(capsule, (template, team), id).await?;
        Ok(agent::FlattenCapsuleResponse { disk_mib, allocated_bytes, stopped_us })
    })
    .await
}

pub async fn golden_status(
    service: &AgentService,
    request: Request<agent::GoldenStatusRequest>,
) -> Result<Response<agent::GoldenStatusResponse>, Status> {
    let Call { message, span, .. } = Call::of("GoldenStatus", request);
    let engine = service.capsules.engine().clone();
    detached(span, async move {
        let template = Some(message.template_id).filter(|template| !template.is_empty());
        let template = template.map(|template| parse_template_id(&template)).transpose()?;
        let GoldenStatus { goldens, total_bytes, budget_bytes } = GoldenStatus::of(&engine, template);
        let goldens = goldens.into_iter().map(golden).collect();
        Ok(agent::GoldenStatusResponse { goldens, total_bytes, budget_bytes })
    })
    .await
}

fn golden(of: GoldenState) -> agent::Golden {
    let GoldenState { template, key, ready, allocated_bytes, used_at_ns } = of;
    let state = if ready { agent::GoldenState::Ready } else { agent::GoldenState::Making };
    agent::Golden {
        template_id: template.to_string(),
        state: state.into(),
        vcpus: key.vcpus,
        memory_mib: key.memory_mib,
        disk_mib: key.disk_mib,
        vmm: key.vmm,
        allocated_bytes,
        used_at_ns,
    }
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
