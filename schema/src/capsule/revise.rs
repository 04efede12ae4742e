//! Changes of what a capsule has besides its state, which only the database knows: its labels, its public ports.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use sea_orm::DatabaseTransaction;
use wrenn_entities::{
    CapsuleId, TeamId,
    capsule::{CapsuleState, Model},
    json::Labels,
};

use super::{
    find, rules,
    state::{self, Cause, Step, compare_and_set, is_transitional},
};
use crate::{Error, Services, access::Actor, bus::Change, database};

/// Changes of state that a revision gives way to before it gives up.
const ATTEMPTS: usize = 5;

/// Writes what `write` writes and what `more` adds to the row, together with a new generation by which everybody who
/// watches sees that something changed.
pub(crate) async fn revise(
    services: &Services,
    team_id: TeamId,
    id: CapsuleId,
    more: impl Fn(Step) -> Step,
    write: impl for<'a> Fn(&'a DatabaseTransaction) -> BoxFuture<'a, Result<(), Error>>,
) -> Result<Arc<Model>, Error> {
    for _ in 0..ATTEMPTS {
        let transaction = database::begin(&services.db).await?;
        let row = find(&transaction, team_id, id).await?;
        // An operation that is under way goes by the generation that it began with.
        if row.state == CapsuleState::Stopped || is_transitional(row.state) {
            return Err(state::unfit(&row));
        }
        write(&transaction).await?;
        let step = more(Step::to(row.state).because(Cause::of(&row)));
        match compare_and_set(&transaction, &row, &[row.state], step).await? {
            Some(row) => {
                transaction.commit().await?;
                let row = Arc::new(row);
                services.bus.publish(Change::Capsule(row.clone()));
                return Ok(row);
            }
            None => transaction.rollback().await?,
        }
    }
    Err(state::lost(id))
}

/// Gives a capsule these labels in place of those that it has.
pub(super) async fn set_labels(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
    labels: BTreeMap<String, String>,
) -> Result<Arc<Model>, Error> {
    rules::labels(&labels)?;
    let with_labels = |step: Step| step.with_labels(Labels(labels.clone()));
    revise(services, actor.team_id, id, with_labels, |_| std::future::ready(Ok(())).boxed()).await
}
