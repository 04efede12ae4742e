//! Writing new capsules down, once for each idempotency key.

use std::{sync::Arc, time::Duration};

use sea_orm::{ActiveModelTrait, IntoActiveModel};
use wrenn_entities::{
    CapsuleId,
    capsule::{CapsuleState, Model},
};

use super::wanted::Wanted;
use crate::{
    Code, Error, Services,
    access::Actor,
    bus::Topic,
    database,
    idempotency::{self, Written},
};

/// Writes the row, together with the key under which the request may come again.
pub(super) async fn record(
    services: &Services,
    actor: &Actor,
    wanted: &Wanted,
) -> Result<Written<Arc<Model>>, Error> {
    let row = wanted.row(actor).into_active_model().reset_all();
    let Some(key) = &wanted.key else {
        return Ok(Written::First(Arc::new(row.insert(&services.db).await?)));
    };
    if let Some(earlier) = idempotency::earlier(&services.db, Some(key)).await? {
        return Ok(Written::Again(earlier));
    }
    let transaction = database::begin(&services.db).await?;
    let written = async {
        let row = row.insert(&transaction).await?;
        idempotency::remember(&transaction, Some(key), row.id, None).await?;
        Ok(Arc::new(row))
    };
    let written = written.await;
    idempotency::conclude(&services.db, transaction, Some(key), written).await
}

/// The capsule of an earlier request, once that has come to its end.
pub(super) async fn await_settled(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
) -> Result<Arc<Model>, Error> {
    let settled = async {
        let mut changes = services.bus.subscribe(Topic::Capsule(id));
        loop {
            let row =
                super::find(&services.db, actor.team_id, id).await.map_err(|error| match error.code() {
                    Code::NotFound => idempotency::withdrawn(),
                    _ => error,
                })?;
            if !matches!(row.state, CapsuleState::Pending | CapsuleState::Starting) {
                return Ok(Arc::new(row));
            }
            // Another replica may be the one that drives it, so the database is looked at now and then too.
            let _ = tokio::time::timeout(Duration::from_secs(1), changes.receive()).await;
        }
    };
    tokio::time::timeout(super::create::CREATE, settled)
        .await
        .map_err(|_| Error::deadline_exceeded("the first request with this key is still under way"))?
}
