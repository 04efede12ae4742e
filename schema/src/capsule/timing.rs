//! Activity and idleness: `pingCapsule` and `setCapsuleTimeout`.

use std::{sync::Arc, time::Duration};

use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{self, CapsuleState, Model},
    time,
};
use wrenn_proto::agent::v1 as agent;

use super::{
    find,
    reach::running_on,
    rules,
    settle::note_activity,
    state::{self, Cause, Step, advance, is_transitional},
};
use crate::{
    Error, Services,
    access::Actor,
    host::{answer, requested},
};

const CALL: Duration = Duration::from_secs(15);
/// Changes of state that `setCapsuleTimeout` gives way to before it gives up.
const ATTEMPTS: usize = 5;

/// Counts as activity.
pub(super) async fn ping(services: &Services, actor: &Actor, id: CapsuleId) -> Result<Arc<Model>, Error> {
    let mut row = find(&services.db, actor.team_id, id).await?;
    let mut client = services.hosts.get(running_on(&row)?).await?;
    let request = requested(agent::CapsuleRef { capsule_id: id.to_string() }, &actor.request_id);
    let capsule = answer("PingCapsule", CALL, client.ping_capsule(request)).await?;
    note_activity(services, &row, &capsule).await?;
    row.last_active_at = time::from_nanos(capsule.last_active_at_ns).or(row.last_active_at);
    Ok(Arc::new(row))
}

/// Changes after how long without activity the capsule is paused. The host, which enforces it, is told first.
pub(super) async fn set_timeout(
    services: &Arc<Services>,
    actor: &Actor,
    id: CapsuleId,
    seconds: i32,
) -> Result<Arc<Model>, Error> {
    let seconds = rules::timeout(seconds)?;
    let (services, actor) = (services.clone(), actor.clone());
    services
        .clone()
        .run_tracked(async move {
            for _ in 0..ATTEMPTS {
                let row = find(&services.db, actor.team_id, id).await?;
                if row.state == CapsuleState::Stopped || is_transitional(row.state) {
                    return Err(state::unfit(&row));
                }
                if let Some(host) = row.host_id {
                    tell(&services, &actor, host, &row, seconds).await?;
                }
                let step = Step::to(row.state).because(Cause::of(&row)).with_timeout(seconds);
                if let Some(row) = advance(&services, &row, &[row.state], step).await? {
                    return Ok(row);
                }
            }
            Err(state::lost(id))
        })
        .await
}

async fn tell(
    services: &Services,
    actor: &Actor,
    host: HostId,
    row: &capsule::Model,
    seconds: i32,
) -> Result<(), Error> {
    let mut client = services.hosts.get(host).await?;
    let message = agent::SetTimeoutRequest {
        capsule_id: row.id.to_string(),
        timeout_sec: u32::try_from(seconds).unwrap_or(0),
    };
    answer("SetTimeout", CALL, client.set_timeout(requested(message, &actor.request_id))).await?;
    Ok(())
}
