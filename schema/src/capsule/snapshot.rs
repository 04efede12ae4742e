//! Making a template of a capsule as it is at this moment.
//!
//! ```text
//! checks ─▶ template `making`, capsule `snapshotting` ─▶ agent ─▶ template `ready` ─▶ capsule as it was
//!           (+ idempotency key), in one transaction        │
//!                                                          ▼ failure
//!                             template withdrawn, key with it; capsule as its host says
//! ```
//! Cut off anywhere after the first transaction, the capsule is settled by the reconciler, and the template, which
//! nobody has seen, is taken back by the job `template-files`.

use std::{
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ActiveModelTrait, DatabaseTransaction, EntityTrait, IntoActiveModel};
use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_entities::{
    CapsuleId, HostId, TemplateId,
    capsule::{CapsuleState, Model},
    id::TypedId,
    template::{self, TemplateKind, TemplateState},
    time::now,
};
use wrenn_proto::agent::v1 as agent;

use super::{
    find,
    operation::{Hold, put_back},
    rules,
    state::{self, Cause, Step, advance, compare_and_set},
};
use crate::{
    Error, Services,
    access::Actor,
    bus::{Change, Topic},
    database,
    host::{answer, requested},
    idempotency::{self, Key, Written},
    template::lifecycle,
};

/// How long a host may take: all of a large capsule's memory is written.
const SNAPSHOT: Duration = Duration::from_secs(300);

/// What `snapshotCapsule` was asked for, checked.
pub(super) struct Wish {
    id: CapsuleId,
    name: String,
    overwrite: bool,
    key: Option<Key>,
}

impl Wish {
    pub(super) fn check(
        actor: &Actor,
        id: CapsuleId,
        name: String,
        overwrite: bool,
        idempotency_key: Option<String>,
    ) -> Result<Self, Error> {
        rules::name("name", &name)?;
        let digest = || {
            let whole = json!([id.to_string(), name, overwrite]);
            Sha256::digest(whole.to_string().as_bytes()).to_vec()
        };
        let key = Key::checked(actor.team_id, "snapshotCapsule", idempotency_key, digest)?;
        Ok(Self { id, name, overwrite, key })
    }
}

/// A snapshot that is under way.
struct Begun {
    capsule: Arc<Model>,
    before: Model,
    host: HostId,
    template: TemplateId,
}

/// Makes the template and answers when it can be used.
pub(super) async fn snapshot(
    services: &Arc<Services>,
    actor: Actor,
    wish: Wish,
) -> Result<template::Model, Error> {
    let services = services.clone();
    services
        .clone()
        .run_tracked(async move {
            match begin(&services, &actor, &wish).await? {
                Written::Again(earlier) => await_ready(&services, wish.id, earlier.template_id).await,
                Written::First(begun) => {
                    services.bus.publish(Change::Capsule(begun.capsule.clone()));
                    let began = Instant::now();
                    let result = drive(&services, &actor, &begun).await;
                    metrics::histogram!("wrenn_capsule_operation_seconds", "operation" => "snapshot")
                        .record(began.elapsed().as_secs_f64());
                    result
                }
            }
        })
        .await
}

async fn begin(services: &Services, actor: &Actor, wish: &Wish) -> Result<Written<Begun>, Error> {
    let key = wish.key.as_ref();
    if let Some(earlier) = idempotency::earlier(&services.db, key).await? {
        return Ok(Written::Again(earlier));
    }
    let transaction = database::begin(&services.db).await?;
    let written = write(&transaction, actor, wish).await;
    idempotency::conclude(&services.db, transaction, key, written).await
}

/// Writes down all that a crash would leave to others.
async fn write(transaction: &DatabaseTransaction, actor: &Actor, wish: &Wish) -> Result<Begun, Error> {
    let before = find(transaction, actor.team_id, wish.id).await?;
    let (CapsuleState::Running | CapsuleState::Paused, Some(host)) = (before.state, before.host_id) else {
        return Err(state::unfit(&before));
    };
    lifecycle::check_name(transaction, actor.team_id, &wish.name, wish.overwrite).await?;
    let origin = template::Entity::find_by_id(before.template_id)
        .one(transaction)
        .await?
        .ok_or_else(|| Error::not_found("the capsule's template is gone"))?;
    let template = TemplateId::generate();
    let inserted = template::Model {
        id: template,
        team_id: actor.team_id,
        name: wish.name.clone(),
        kind: TemplateKind::Snapshot,
        state: TemplateState::Making,
        host_id: Some(host),
        source_capsule_id: Some(before.id),
        size_bytes: None,
        vcpus: before.vcpus,
        memory_mib: before.memory_mib,
        disk_mib: before.disk_mib,
        default_user: origin.default_user,
        env: origin.env,
        created_at: now(),
        deleted_at: None,
    }
    .into_active_model()
    .reset_all()
    .insert(transaction)
    .await;
    inserted.map_err(|error| match database::is_duplicate(&error) {
        true => Error::conflict(format!("a template `{}` was made at the same moment", wish.name))
            .with_field("name"),
        false => error.into(),
    })?;
    let step = Step::to(CapsuleState::Snapshotting).because(Cause::of(&before));
    let capsule = compare_and_set(transaction, &before, &[before.state], step)
        .await?
        .ok_or_else(|| state::lost(wish.id))?;
    idempotency::remember(transaction, wish.key.as_ref(), wish.id, Some(template)).await?;
    Ok(Begun { capsule: Arc::new(capsule), before, host, template })
}

async fn drive(services: &Arc<Services>, actor: &Actor, begun: &Begun) -> Result<template::Model, Error> {
    let Begun { capsule, before, host, template } = begun;
    let (host, template) = (*host, *template);
    let hold = Hold::keep(services, slice::from_ref(capsule));
    let made = async {
        let made = call(services, actor, host, capsule.id, template).await?;
        let ready = lifecycle::publish(services, template, &made).await?;
        ready.ok_or_else(|| Error::conflict("the template was taken back while it was being made"))
    };
    let result = made.await;
    match &result {
        Ok(_) => {
            let step = Step::to(before.state).because(Cause::of(before));
            // Has somebody settled it meanwhile, then by what the host says, which is as good.
            if let Err(error) = advance(services, capsule, &[CapsuleState::Snapshotting], step).await {
                tracing::warn!(capsule = %capsule.id, error = %error.chain(), "left to the reconciler");
            }
        }
        Err(error) => {
            tracing::warn!(capsule = %capsule.id, %host, error = %error.chain(), "no snapshot could be made");
            if let Err(error) = lifecycle::withdraw(services, template).await {
                tracing::warn!(%template, error = %error.chain(), "left to the job that takes templates back");
            }
            put_back(services, capsule, host).await;
        }
    }
    drop(hold);
    result
}

async fn call(
    services: &Services,
    actor: &Actor,
    host: HostId,
    id: CapsuleId,
    template: TemplateId,
) -> Result<agent::SnapshotCapsuleResponse, Error> {
    let mut client = services.hosts.get(host).await?;
    let message =
        agent::SnapshotCapsuleRequest { capsule_id: id.to_string(), template_id: template.to_string() };
    let made =
        answer("SnapshotCapsule", SNAPSHOT, client.snapshot_capsule(requested(message, &actor.request_id)))
            .await?;
    tracing::info!(capsule = %id, %template, stopped_us = made.stopped_us, bytes = made.written_bytes, "snapshot");
    Ok(made)
}

/// The template of an earlier request, once that has come to its end.
async fn await_ready(
    services: &Services,
    id: CapsuleId,
    template: Option<TemplateId>,
) -> Result<template::Model, Error> {
    let template = template.ok_or_else(idempotency::withdrawn)?;
    let ready = async {
        let mut changes = services.bus.subscribe(Topic::Capsule(id));
        loop {
            let row = template::Entity::find_by_id(template)
                .one(&services.db)
                .await?
                .ok_or_else(idempotency::withdrawn)?;
            match (row.state, row.deleted_at) {
                (TemplateState::Ready, None) => return Ok(row),
                (TemplateState::Ready, Some(_)) => {
                    return Err(Error::not_found(format!("the template {template} was deleted")));
                }
                (TemplateState::Making, Some(_)) => return Err(idempotency::withdrawn()),
                (TemplateState::Making, None) => {}
            }
            // The capsule changes when it is done. Another replica may be the one that drives it, so the database is
            // looked at now and then too.
            let _ = tokio::time::timeout(Duration::from_secs(1), changes.receive()).await;
        }
    };
    tokio::time::timeout(SNAPSHOT, ready)
        .await
        .map_err(|_| Error::deadline_exceeded("the first request with this key is still under way"))?
}
