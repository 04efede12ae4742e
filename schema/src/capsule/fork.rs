//! Making running copies of a capsule: all of one moment, all of them or none.
//!
//! ```text
//! checks ─▶ rows `starting` on the parent's host (+ idempotency key) ─▶ agent, one call ─▶ rows `running`
//!                                                                         │
//!                                                                         ▼ failure
//!                                              what is there of them destroyed, rows withdrawn
//! ```
//! The parent's row does not change: it stands still for milliseconds only, and whatever else is wanted of it at the
//! same time is put in order by its host. Cut off anywhere, the copies' rows are settled one by one by what the
//! host says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{self, CapsuleState, Model},
    id::TypedId,
    time::now,
};
use wrenn_proto::agent::v1 as agent;

use super::{
    create::{started, withdraw},
    find,
    operation::Hold,
    record::await_settled,
    rules, settle,
    state::{self, HOLD},
};
use crate::{
    Error, Services,
    access::Actor,
    bus::Change,
    database,
    host::{
        answer,
        placement::{self, Candidates, Demand},
        requested,
    },
    idempotency::{self, Key, Written},
};

/// Copies that one request can ask for; the contract's own bound.
const COUNT: std::ops::RangeInclusive<i32> = 1..=100;
/// How long a host may take for all of them.
const FORK: Duration = Duration::from_secs(180);
/// Copies that are taken away at a time.
const AT_ONCE: usize = 16;

/// What `forkCapsule` was asked for, checked.
pub(super) struct Wish {
    id: CapsuleId,
    count: usize,
    inherit_secrets: bool,
    key: Option<Key>,
}

impl Wish {
    pub(super) fn check(
        actor: &Actor,
        id: CapsuleId,
        count: i32,
        inherit_secrets: bool,
        idempotency_key: Option<String>,
    ) -> Result<Self, Error> {
        let count = usize::try_from(rules::within("count", count, &COUNT)?).unwrap_or(1);
        let digest = || {
            let whole = json!([id.to_string(), count, inherit_secrets]);
            Sha256::digest(whole.to_string().as_bytes()).to_vec()
        };
        let key = Key::checked(actor.team_id, "forkCapsule", idempotency_key, digest)?;
        Ok(Self { id, count, inherit_secrets, key })
    }
}

/// Makes the copies and answers when all of them run.
pub(super) async fn fork(
    services: &Arc<Services>,
    actor: Actor,
    wish: Wish,
) -> Result<Vec<Arc<Model>>, Error> {
    let services = services.clone();
    services
        .clone()
        .run_tracked(async move {
            match record(&services, &actor, &wish).await? {
                Written::Again(first) => earlier(&services, &actor, first.capsule_id).await,
                Written::First((host, rows)) => {
                    for row in &rows {
                        services.bus.publish(Change::Capsule(row.clone()));
                    }
                    let began = Instant::now();
                    let result = drive(&services, &actor, &wish, host, &rows).await;
                    metrics::histogram!("wrenn_capsule_operation_seconds", "operation" => "fork")
                        .record(began.elapsed().as_secs_f64());
                    result
                }
            }
        })
        .await
}

/// What is written down of a fork: where, and the copies.
type Recorded = (HostId, Vec<Arc<Model>>);

async fn record(services: &Services, actor: &Actor, wish: &Wish) -> Result<Written<Recorded>, Error> {
    let key = wish.key.as_ref();
    if let Some(earlier) = idempotency::earlier(&services.db, key).await? {
        return Ok(Written::Again(earlier));
    }
    let transaction = database::begin(&services.db).await?;
    let written = write(&transaction, services, actor, wish).await;
    idempotency::conclude(&services.db, transaction, key, written).await
}

/// Finds room on the parent's host and writes the rows.
async fn write(
    transaction: &DatabaseTransaction,
    services: &Services,
    actor: &Actor,
    wish: &Wish,
) -> Result<Recorded, Error> {
    let parent = find(transaction, actor.team_id, wish.id).await?;
    let (CapsuleState::Running | CapsuleState::Paused, Some(host)) = (parent.state, parent.host_id) else {
        return Err(state::unfit(&parent));
    };
    let count = i64::try_from(wish.count).unwrap_or(i64::MAX);
    let demand = Demand::of(&parent).times(count);
    placement::choose(transaction, &services.config, demand, Candidates::Holder(host)).await?;
    let moment = Uuid::now_v7();
    let rows: Vec<_> = (0..wish.count).map(|_| Arc::new(copy(&parent, moment, actor))).collect();
    let models = rows.iter().map(|row| Model::clone(row).into_active_model().reset_all());
    capsule::Entity::insert_many(models).exec_without_returning(transaction).await?;
    if let Some(first) = rows.first() {
        idempotency::remember(transaction, wish.key.as_ref(), first.id, None).await?;
    }
    Ok((host, rows))
}

fn copy(parent: &Model, moment: Uuid, actor: &Actor) -> Model {
    let at = now();
    Model {
        id: CapsuleId::generate(),
        team_id: parent.team_id,
        template_id: parent.template_id,
        host_id: parent.host_id,
        parent_id: Some(parent.id),
        fork_id: Some(moment),
        name: None,
        state: CapsuleState::Starting,
        generation: 1,
        cause_code: None,
        cause_message: None,
        vcpus: parent.vcpus,
        memory_mib: parent.memory_mib,
        disk_mib: parent.disk_mib,
        timeout_sec: parent.timeout_sec,
        auto_resume: parent.auto_resume,
        labels: parent.labels.clone(),
        created_by: actor.key_id,
        created_at: at,
        updated_at: at,
        started_at: None,
        last_active_at: None,
        operation_until: Some(at + HOLD),
    }
}

async fn drive(
    services: &Arc<Services>,
    actor: &Actor,
    wish: &Wish,
    host: HostId,
    rows: &[Arc<Model>],
) -> Result<Vec<Arc<Model>>, Error> {
    let hold = Hold::keep(services, rows);
    let made = async {
        let capsules = call(services, actor, wish, host, rows).await?;
        let mut running = Vec::with_capacity(rows.len());
        for (row, capsule) in rows.iter().zip(&capsules) {
            running.push(started(services, actor, row, host, capsule).await?);
        }
        Ok(running)
    };
    let result: Result<_, Error> = made.await;
    drop(hold);
    if let Err(error) = &result {
        tracing::warn!(capsule = %wish.id, %host, error = %error.chain(), "the host could not fork the capsule");
        undo(services, actor, host, rows).await;
    }
    result
}

async fn call(
    services: &Services,
    actor: &Actor,
    wish: &Wish,
    host: HostId,
    rows: &[Arc<Model>],
) -> Result<Vec<agent::Capsule>, Error> {
    let mut client = services.hosts.get(host).await?;
    let message = agent::ForkCapsuleRequest {
        capsule_id: wish.id.to_string(),
        child_ids: rows.iter().map(|row| row.id.to_string()).collect(),
        inherit_secrets: wish.inherit_secrets,
    };
    let made =
        answer("ForkCapsule", FORK, client.fork_capsule(requested(message, &actor.request_id))).await?;
    if made.capsules.len() != rows.len() {
        return Err(Error::Task(format!("the host made {} copies of {}", made.capsules.len(), rows.len())));
    }
    tracing::info!(capsule = %wish.id, copies = rows.len(), stopped_us = made.stopped_us, "fork");
    Ok(made.capsules)
}

/// Takes away what there may be of the copies. What a host that is out of reach has made of them is removed when it
/// is back: no row says that it should be there.
async fn undo(services: &Services, actor: &Actor, host: HostId, rows: &[Arc<Model>]) {
    stream::iter(rows)
        .for_each_concurrent(AT_ONCE, |row| async move {
            if let Err(left) = settle::remove(services, host, row.id, &actor.request_id).await {
                tracing::warn!(capsule = %row.id, %host, error = %left.chain(), "what is left of it is for the reconciler");
            }
            withdraw(services, row).await;
        })
        .await;
}

/// The copies of an earlier request, once all of them have come to their end.
async fn earlier(services: &Services, actor: &Actor, first: CapsuleId) -> Result<Vec<Arc<Model>>, Error> {
    let first = await_settled(services, actor, first).await?;
    let moment = first.fork_id.ok_or_else(idempotency::withdrawn)?;
    let copies = capsule::Entity::find()
        .filter(capsule::Column::TeamId.eq(actor.team_id))
        .filter(capsule::Column::ForkId.eq(moment))
        .order_by_asc(capsule::Column::Id)
        .all(&services.db)
        .await?;
    let mut settled = Vec::with_capacity(copies.len());
    for copy in copies {
        settled.push(await_settled(services, actor, copy.id).await?);
    }
    Ok(settled)
}
