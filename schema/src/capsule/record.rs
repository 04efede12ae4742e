//! Writing a new capsule down, once for each idempotency key.

use std::{sync::Arc, time::Duration};

use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, Set};
use wrenn_entities::{
    CapsuleId,
    capsule::{CapsuleState, Model},
    idempotency_key,
    time::now,
};

use super::wanted::Wanted;
use crate::{
    Code, Error, Services,
    access::Actor,
    bus::{Change, Received},
    database,
};

/// The operation under which the keys are kept.
const OPERATION: &str = "createCapsule";

/// A row that was written, or the one that an earlier request with the same key wrote.
pub(super) enum Recorded {
    New(Arc<Model>),
    Earlier(CapsuleId),
}
/// Writes the row, together with the key under which the request may come again.
pub(super) async fn record(services: &Services, actor: &Actor, wanted: &Wanted) -> Result<Recorded, Error> {
    let row = wanted.row(actor);
    let Some(key) = &wanted.idempotency_key else {
        return Ok(Recorded::New(Arc::new(row.into_active_model().reset_all().insert(&services.db).await?)));
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
                return Ok(Recorded::New(Arc::new(row)));
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
        Some(_) => {
            Err(Error::conflict("the key was used before with another input").with_field("idempotencyKey"))
        }
        None => Err(withdrawn()),
    }
}

fn withdrawn() -> Error {
    Error::unavailable("the first request with this key could not be carried out; try again")
}

/// The capsule of an earlier request, once that has come to its end.
pub(super) async fn await_settled(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
) -> Result<Arc<Model>, Error> {
    let settled = async {
        let mut changes = services.bus.subscribe();
        loop {
            let row =
                super::find(&services.db, actor.team_id, id).await.map_err(|error| match error.code() {
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
    tokio::time::timeout(super::create::CREATE, settled)
        .await
        .map_err(|_| Error::deadline_exceeded("the first request with this key is still under way"))?
}
