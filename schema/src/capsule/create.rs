//! Making a capsule.
//!
//! ```text
//! checks ─▶ row `pending` (+ idempotency key) ─▶ host chosen: `starting` ─▶ agent ─▶ `running`
//!              │                                       ▲        │ the host is full or away:
//!              ▼ no host can take it                   └────────┘ another one
//!         row withdrawn
//! ```
//! From the row on, everything happens in a task of its own: whoever asked may go away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Set};
use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{self, CapsuleState, Model},
    id::TypedId,
    idempotency_key,
    json::Labels,
    template::{self, TemplateKind},
    time::{self, now},
};
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use super::{
    mutation::CreateCapsuleInput,
    operation::Hold,
    rules, settle,
    state::{self, Cause, HOLD, Step, advance, compare_and_set},
};
use crate::{
    Code, Error, Services,
    access::Actor,
    bus::{Change, Received},
    database,
    host::{answer, placement, requested},
};

/// How long a host may take: the first capsule of a template boots, with nothing to restore from.
const CREATE: Duration = Duration::from_secs(180);
/// The operation under which idempotency keys are kept.
const OPERATION: &str = "createCapsule";

/// An input that was checked, with everything filled in.
struct Wanted {
    template: template::Model,
    name: Option<String>,
    vcpus: i32,
    memory_mib: i32,
    disk_mib: i32,
    timeout_sec: i32,
    env: Vec<envd::EnvVar>,
    labels: Labels,
    idempotency_key: Option<String>,
}

/// A row that was written, or the one that an earlier request with the same key wrote.
enum Recorded {
    New(Model),
    Earlier(CapsuleId),
}

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
                Recorded::Earlier(id) => await_settled(&services, &actor, id).await,
                Recorded::New(row) => {
                    let row = Arc::new(row);
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

async fn check(services: &Services, actor: &Actor, input: CreateCapsuleInput) -> Result<Wanted, Error> {
    if let Some(name) = &input.name {
        rules::name("name", name)?;
    }
    if let Some(key) = &input.idempotency_key {
        rules::idempotency_key(key)?;
    }
    let bounded = |field: &str, value: Option<i32>, bounds: &_| {
        value.map(|value| rules::within(field, value, bounds)).transpose()
    };
    let vcpus = bounded("vcpus", input.vcpus, &rules::VCPUS)?;
    let memory_mib = bounded("memoryMib", input.memory_mib, &rules::MEMORY_MIB)?;
    let disk_mib = bounded("diskMib", input.disk_mib, &rules::DISK_MIB)?;
    let timeout_sec = rules::timeout(input.timeout_sec.unwrap_or(0))?;
    let env = input.env.unwrap_or_default();
    rules::env(&env)?;
    let labels = input.labels.unwrap_or_default().0;
    rules::labels(&labels)?;
    let wanted = input.template.as_deref().unwrap_or("minimal");
    let template = crate::template::find(&services.db, actor.team_id, "template", wanted).await?;
    if template.kind == TemplateKind::Snapshot {
        for (field, given, fixed) in
            [("vcpus", vcpus, template.vcpus), ("memoryMib", memory_mib, template.memory_mib)]
        {
            if given.is_some_and(|given| given != fixed) {
                return Err(Error::invalid(field, format!("the template has {fixed} in its memory; leave `{field}` out")));
            }
        }
    }
    let own = env.into_iter().map(|var| envd::EnvVar { name: var.name, value: var.value });
    let inherited = template.env.0.iter().map(|var| envd::EnvVar { name: var.name.clone(), value: var.value.clone() });
    Ok(Wanted {
        name: input.name,
        vcpus: vcpus.unwrap_or(template.vcpus),
        memory_mib: memory_mib.unwrap_or(template.memory_mib),
        disk_mib: disk_mib.unwrap_or(template.disk_mib),
        timeout_sec,
        env: inherited.chain(own).collect(),
        labels: Labels(labels),
        idempotency_key: input.idempotency_key,
        template,
    })
}

impl Wanted {
    /// What two requests under one key must have in common.
    fn digest(&self) -> Vec<u8> {
        let env = self.env.iter().map(|var| (&var.name, &var.value)).collect::<Vec<_>>();
        let whole = json!([
            self.template.id.to_string(),
            self.name,
            self.vcpus,
            self.memory_mib,
            self.disk_mib,
            self.timeout_sec,
            env,
            self.labels,
        ]);
        Sha256::digest(whole.to_string().as_bytes()).to_vec()
    }

    fn row(&self, actor: &Actor) -> Model {
        let at = now();
        Model {
            id: CapsuleId::generate(),
            team_id: actor.team_id,
            template_id: self.template.id,
            host_id: None,
            name: self.name.clone(),
            state: CapsuleState::Pending,
            generation: 1,
            cause_code: None,
            cause_message: None,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_mib: self.disk_mib,
            timeout_sec: self.timeout_sec,
            labels: self.labels.clone(),
            created_by: Some(actor.key_id),
            created_at: at,
            updated_at: at,
            started_at: None,
            last_active_at: None,
            operation_until: Some(at + HOLD),
        }
    }
}

/// Writes the row, together with the key under which the request may come again.
async fn record(services: &Services, actor: &Actor, wanted: &Wanted) -> Result<Recorded, Error> {
    let row = wanted.row(actor);
    let Some(key) = &wanted.idempotency_key else {
        return Ok(Recorded::New(row.into_active_model().reset_all().insert(&services.db).await?));
    };
    let known = (actor.team_id, OPERATION.to_owned(), key.clone());
    let transaction = database::begin(&services.db).await?;
    let mut earlier = idempotency_key::Entity::find_by_id(known.clone()).one(&transaction).await?;
    if earlier.is_none() {
        let row = row.into_active_model().reset_all().insert(&transaction).await?;
        let inserted = idempotency_key::ActiveModel {
            team_id: Set(actor.team_id),
            operation: Set(OPERATION.to_owned()),
            key: Set(key.clone()),
            input_digest: Set(wanted.digest()),
            capsule_id: Set(row.id),
            created_at: Set(now()),
        }
        .insert(&transaction)
        .await;
        match inserted {
            Ok(_) => {
                transaction.commit().await?;
                return Ok(Recorded::New(row));
            }
            // Somebody else with the same key was faster; what was written here goes.
            Err(error) if database::is_duplicate(&error) => {
                transaction.rollback().await?;
                earlier = idempotency_key::Entity::find_by_id(known).one(&services.db).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    match earlier {
        Some(earlier) if earlier.input_digest == wanted.digest() => Ok(Recorded::Earlier(earlier.capsule_id)),
        Some(_) => Err(Error::conflict("the key was used before with another input").with_field("idempotencyKey")),
        None => Err(withdrawn()),
    }
}

fn withdrawn() -> Error {
    Error::unavailable("the first request with this key could not be carried out; try again")
}

/// The capsule of an earlier request, once that has come to its end.
async fn await_settled(services: &Services, actor: &Actor, id: CapsuleId) -> Result<Arc<Model>, Error> {
    let settled = async {
        let mut changes = services.bus.subscribe();
        loop {
            let row = super::find(&services.db, actor.team_id, id).await.map_err(|error| match error.code() {
                Code::NotFound => withdrawn(),
                _ => error,
            })?;
            if !matches!(row.state, CapsuleState::Pending | CapsuleState::Starting) {
                return Ok(Arc::new(row));
            }
            loop {
                // Another replica may be the one that drives it, so the database is looked at now and then too.
                match tokio::time::timeout(Duration::from_secs(1), changes.receive()).await {
                    Ok(Received::Change(Change::Capsule(row))) if row.id == id => break,
                    Ok(Received::Change(Change::CapsuleWithdrawn { id: gone, .. })) if gone == id => break,
                    Ok(Received::Change(_)) => {}
                    Ok(Received::Missed | Received::Closed) | Err(_) => break,
                }
            }
        }
    };
    tokio::time::timeout(CREATE, settled)
        .await
        .map_err(|_| Error::deadline_exceeded("the first request with this key is still under way"))?
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
        let host = match place(services, &row, &tried).await {
            Ok((host, placed)) => {
                row = placed;
                host
            }
            Err(error) => {
                withdraw(services, &row).await;
                return Err(refused.unwrap_or(error));
            }
        };
        let hold = Hold::keep(services, &row);
        let answered = call(services, actor, wanted, host, &row).await;
        drop(hold);
        match answered {
            Ok(capsule) => return started(services, actor, &row, host, &capsule).await,
            // What a host that was lost on the way has made after all is removed when it is back.
            Err(error) if matches!(error.code(), Code::Unavailable | Code::ResourceExhausted) => {
                tracing::warn!(capsule = %row.id, %host, error = %error.chain(), "the host cannot take the capsule");
                tried.push(host);
                refused = Some(error);
            }
            Err(error) => {
                failed(services, actor, &row, host, &error).await;
                return Err(error);
            }
        }
    }
}

/// Chooses a host and puts the row there, in one transaction.
async fn place(services: &Services, row: &Arc<Model>, tried: &[HostId]) -> Result<(HostId, Arc<Model>), Error> {
    let transaction = database::begin(&services.db).await?;
    let host = placement::choose(&transaction, &services.config, placement::Demand::of(row), tried).await?;
    let step = Step::to(CapsuleState::Starting).on(host);
    let placed = compare_and_set(&transaction, row, &[CapsuleState::Pending, CapsuleState::Starting], step).await?;
    let placed = Arc::new(placed.ok_or_else(|| state::lost(row.id))?);
    transaction.commit().await?;
    services.bus.publish(Change::Capsule(placed.clone()));
    Ok((host, placed))
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
    };
    answer("CreateCapsule", CREATE, client.create_capsule(requested(message, &actor.request_id))).await
}

async fn started(
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
        Code::Internal => format!("the host could not create it; the log has the details under {}", actor.request_id),
        _ => error.to_string(),
    };
    let step = Step::to(CapsuleState::Error).because(Some(Cause::new("CREATE_FAILED", message)));
    if let Err(error) = advance(services, row, &[CapsuleState::Starting], step).await {
        tracing::warn!(capsule = %row.id, error = %error.chain(), "left to the reconciler");
    }
}

/// Takes back a row of which nothing came; its idempotency key goes with it.
async fn withdraw(services: &Services, row: &Model) {
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
