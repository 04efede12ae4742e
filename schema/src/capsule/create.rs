//! Making a capsule.
//!
//! ```text
//! checks ─▶ row `pending` (+ idempotency key) ─▶ host chosen: `starting` ─▶ agent ─▶ `running`
//!              │                                       ▲        │ the host is full or away:
//!              ▼ no host can take it                   └────────┘ another one
//!         row withdrawn
//! ```
//! A snapshot is on one host only: what is made from it is made there or not at all. An image is where it was made:
//! hosts that have none are passed over.
//!
//! From the row on, everything happens in a task of its own: whoever asked may go away.

use std::{
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use wrenn_entities::{
    HostId,
    capsule::{self, CapsuleState, Model},
    template::{self, TemplateKind},
    time::{self, now},
};
use wrenn_proto::{IMAGE_MISSING, agent::v1 as agent};

use super::{
    mutation::CreateCapsuleInput,
    operation::Hold,
    record::{await_settled, record},
    settle,
    state::{self, Cause, Step, advance, place},
    wanted::{Wanted, check},
};
use crate::{
    Code, Error, Services,
    access::Actor,
    bus::Change,
    host::{
        answer,
        placement::{Candidates, Demand},
        requested,
    },
    idempotency::Written,
};

/// How long a host may take: the first capsule of a template boots, with nothing to restore from.
pub(super) const CREATE: Duration = Duration::from_secs(180);

/// Makes a capsule and answers when it runs.
pub(crate) async fn create(
    services: &Arc<Services>,
    actor: Actor,
    input: CreateCapsuleInput,
) -> Result<Arc<Model>, Error> {
    let wanted = check(services, &actor, input).await?;
    let services = services.clone();
    services
        .clone()
        .run_tracked(async move {
            match record(&services, &actor, &wanted).await? {
                Written::Again(earlier) => await_settled(&services, &actor, earlier.capsule_id).await,
                Written::First(row) => {
                    services.bus.publish(Change::Capsule(row.clone()));
                    let began = Instant::now();
                    let result = drive(&services, &actor, &wanted, row).await;
                    metrics::histogram!("wrenn_capsule_operation_seconds", "operation" => "create")
                        .record(began.elapsed().as_secs_f64());
                    result
                }
            }
        })
        .await
}
async fn drive(
    services: &Arc<Services>,
    actor: &Actor,
    wanted: &Wanted,
    mut row: Arc<Model>,
) -> Result<Arc<Model>, Error> {
    let mut tried = Vec::new();
    let mut refused: Option<Error> = None;
    loop {
        let candidates = wanted.pinned_to().map_or(Candidates::AllBut(&tried), Candidates::Holder);
        let from = [CapsuleState::Pending, CapsuleState::Starting];
        let wish = (Demand::of(&row), candidates);
        let host = match place(services, &row, &from, CapsuleState::Starting, wish).await {
            Ok((host, placed)) => {
                row = placed;
                host
            }
            Err(error) => {
                withdraw(services, &row).await;
                return Err(refused.unwrap_or(error));
            }
        };
        let hold = Hold::keep(services, slice::from_ref(&row));
        let answered = call(services, actor, wanted, host, &row).await;
        drop(hold);
        match answered {
            Ok(capsule) => return started(services, actor, &row, host, &capsule).await,
            // What a host that was lost on the way has made after all is removed when it is back.
            Err(error) if matches!(error.code(), Code::Unavailable | Code::ResourceExhausted) => {
                tracing::warn!(capsule = %row.id, %host, error = %error.chain(), "the host cannot take the capsule");
                if wanted.pinned_to().is_some() {
                    withdraw(services, &row).await;
                    return Err(error);
                }
                tried.push(host);
                refused = Some(error);
            }
            Err(error) if error.cause() == Some(IMAGE_MISSING) => {
                tracing::info!(capsule = %row.id, %host, template = %wanted.template.id, "the host has no image");
                tried.push(host);
                // That a host with the image was full says more.
                refused.get_or_insert_with(|| no_image(&wanted.template));
            }
            Err(error) => {
                failed(services, actor, &row, host, &error).await;
                return Err(error);
            }
        }
    }
}

/// What to tell when no host that could be asked has the template's image.
fn no_image(template: &template::Model) -> Error {
    let name = &template.name;
    let missing = format!("no host that has room for this capsule has an image of the template `{name}`");
    let message = if template.id.is_built_in() {
        format!("{missing}: run `wrenn-rootfs build {name}` on a host to make it")
    } else {
        missing
    };
    Error::failed_precondition(message).with_field("template").with_cause(IMAGE_MISSING)
}

async fn call(
    services: &Services,
    actor: &Actor,
    wanted: &Wanted,
    host: HostId,
    row: &Model,
) -> Result<agent::Capsule, Error> {
    let mut client = services.hosts.get(host).await?;
    // All of them were checked to be positive.
    let unsigned = |value: i32| u32::try_from(value).unwrap_or(0);
    let message = agent::CreateCapsuleRequest {
        capsule_id: row.id.to_string(),
        team_id: row.team_id.to_string(),
        template_id: wanted.template.id.to_string(),
        template_team_id: wanted.template.team_id.to_string(),
        vcpus: unsigned(row.vcpus),
        memory_mib: unsigned(row.memory_mib),
        disk_mib: unsigned(row.disk_mib),
        timeout_sec: unsigned(row.timeout_sec),
        env: wanted.env.clone(),
        default_user: wanted.template.default_user.clone(),
        egress: wanted.egress.clone(),
        from_snapshot: wanted.template.kind == TemplateKind::Snapshot,
        secret_env: wanted.secret_env.clone(),
    };
    answer("CreateCapsule", CREATE, client.create_capsule(requested(message, &actor.request_id))).await
}

pub(super) async fn started(
    services: &Services,
    actor: &Actor,
    row: &Model,
    host: HostId,
    capsule: &agent::Capsule,
) -> Result<Arc<Model>, Error> {
    let step = Step::to(CapsuleState::Running)
        .started(time::from_nanos(capsule.started_at_ns).or_else(|| Some(now())))
        .active(time::from_nanos(capsule.last_active_at_ns));
    if let Some(running) = advance(services, row, &[CapsuleState::Starting], step).await? {
        return Ok(running);
    }
    // Somebody settled the row meanwhile. What they made of it stands; only what nobody knows of is taken away.
    match capsule::Entity::find_by_id(row.id).one(&services.db).await? {
        Some(now) if now.state == CapsuleState::Running => Ok(Arc::new(now)),
        _ => {
            settle::remove(services, host, row.id, &actor.request_id).await?;
            Err(state::lost(row.id))
        }
    }
}

/// Undoes what a host may have made. A mistake of the caller's leaves no row; anything else leaves one that says why.
async fn failed(services: &Services, actor: &Actor, row: &Model, host: HostId, error: &Error) {
    tracing::warn!(capsule = %row.id, %host, error = %error.chain(), "the host could not create the capsule");
    if let Err(left) = settle::remove(services, host, row.id, &actor.request_id).await {
        tracing::warn!(capsule = %row.id, %host, error = %left.chain(), "what is left of it is for the reconciler");
    }
    if matches!(error.code(), Code::InvalidInput | Code::NotFound | Code::FailedPrecondition) {
        withdraw(services, row).await;
        return;
    }
    let message = match error.code() {
        Code::Internal => {
            format!("the host could not create it; the log has the details under {}", actor.request_id)
        }
        _ => error.to_string(),
    };
    let step = Step::to(CapsuleState::Error).because(Some(Cause::new("CREATE_FAILED", message)));
    if let Err(error) = advance(services, row, &[CapsuleState::Starting], step).await {
        tracing::warn!(capsule = %row.id, error = %error.chain(), "left to the reconciler");
    }
}

/// Takes back a row of which nothing came; its idempotency key goes with it.
pub(super) async fn withdraw(services: &Services, row: &Model) {
    let deleted = capsule::Entity::delete_many()
        .filter(capsule::Column::Id.eq(row.id))
        .filter(capsule::Column::Generation.eq(row.generation))
        .filter(capsule::Column::State.is_in([CapsuleState::Pending, CapsuleState::Starting]))
        .exec(&services.db)
        .await;
    match deleted {
        Ok(deleted) if deleted.rows_affected > 0 => {
            services.bus.publish(Change::CapsuleWithdrawn { team_id: row.team_id, id: row.id });
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(capsule = %row.id, %error, "left to the reconciler"),
    }
}
