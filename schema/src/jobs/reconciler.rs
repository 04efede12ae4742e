//! Compares what each online host has with what the database says, and settles what nobody drives any more.
//!
//! What `host_watch` does at once this does for certain: it also finds what no event told of.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use tokio_util::sync::CancellationToken;
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{self, CapsuleState},
    host::{self, HostStatus},
    time::now,
};
use wrenn_proto::agent::v1 as agent;

use super::Job;
use crate::{
    Error, Services,
    access::RequestId,
    capsule::{
        settle::{self, CREATE_INTERRUPTED, note_activity, settle},
        state::{Cause, Step, advance},
    },
    host::{answer, requested},
};

const LIST: Duration = Duration::from_secs(10);

pub(super) struct Reconciler {
    services: Arc<Services>,
}

impl Reconciler {
    pub(super) fn new(services: Arc<Services>) -> Self {
        Self { services }
    }

    /// Rows that were written and never came to a host: whoever made them is gone.
    async fn abandoned(&self) -> Result<(), Error> {
        let rows = capsule::Entity::find()
            .filter(capsule::Column::OperationUntil.lt(now()))
            .filter(capsule::Column::HostId.is_null())
            .all(&self.services.db)
            .await?;
        for row in rows {
            let (to, cause) = match row.state {
                CapsuleState::Stopping => (CapsuleState::Stopped, None),
                _ => (
                    CapsuleState::Error,
                    Some(Cause::new(CREATE_INTERRUPTED, "the creation was cut off before a host was chosen")),
                ),
            };
            advance(&self.services, &row, &[row.state], Step::to(to).because(cause).only_if_free()).await?;
        }
        Ok(())
    }
}

/// Rows of a host that are not done with.
pub(super) async fn present(services: &Services, host: HostId) -> Result<Vec<capsule::Model>, Error> {
    Ok(capsule::Entity::find()
        .filter(capsule::Column::HostId.eq(host))
        .filter(capsule::Column::State.ne(CapsuleState::Stopped))
        .all(&services.db)
        .await?)
}

/// Compares the whole of one host.
async fn compare(services: &Services, host: HostId) -> Result<(), Error> {
    // First the rows, then the truth: a row that is still the same at its change is older than what the host said.
    let rows = present(services, host).await?;
    let mut client = services.hosts.get(host).await?;
    let request = requested(agent::ListCapsulesRequest {}, &RequestId(format!("reconcile-{host}")));
    let list = answer("ListCapsules", LIST, client.list_capsules(request)).await?;
    let held: HashMap<String, agent::Capsule> =
        list.capsules.into_iter().map(|capsule| (capsule.id.clone(), capsule)).collect();
    let mut known = HashSet::new();
    for row in &rows {
        let id = row.id.to_string();
        let truth = held.get(&id);
        if let Err(error) = settle(services, row, truth, false).await {
            tracing::warn!(capsule = %row.id, error = %error.chain(), "a capsule could not be settled");
        }
        if let Some(truth) = truth {
            note_activity(services, row, truth).await?;
        }
        known.insert(id);
    }
    for capsule in held.values().filter(|capsule| !known.contains(&capsule.id)) {
        if let Err(error) = surplus(services, host, capsule).await {
            tracing::warn!(capsule = capsule.id, %host, error = %error.chain(), "a surplus capsule stays on its host");
        }
    }
    Ok(())
}

/// Takes from a host what should not be there. A row is always written before a host is told, so what has no row now,
/// after the host named it, never had one that counts.
pub(super) async fn surplus(
    services: &Services,
    host: HostId,
    capsule: &agent::Capsule,
) -> Result<(), Error> {
    if capsule.state() == agent::CapsuleState::Stopped {
        return Ok(());
    }
    let Ok(id) = capsule.id.parse::<CapsuleId>() else {
        tracing::error!(capsule = capsule.id, %host, "a host has a capsule with an id that is none");
        return Ok(());
    };
    match capsule::Entity::find_by_id(id).one(&services.db).await? {
        Some(row) if row.host_id == Some(host) => {
            settle(services, &row, Some(capsule), false).await?;
        }
        row => {
            tracing::warn!(capsule = %id, %host, elsewhere = row.is_some(), "a host has a capsule that is not its own");
            settle::remove(services, host, id, &RequestId(format!("reconcile-{host}"))).await?;
        }
    }
    Ok(())
}

#[async_trait::async_trait]
impl Job for Reconciler {
    fn name(&self) -> &'static str {
        "reconciler"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn activate(&self, stop: &CancellationToken) -> Result<(), Error> {
        self.abandoned().await?;
        let online = host::Entity::find()
            .filter(host::Column::Status.eq(HostStatus::Online))
            .all(&self.services.db)
            .await?;
        // All at once: one host that does not answer holds up none of the others.
        let compared = futures_util::future::join_all(online.iter().map(|host| async {
            let result = stop.run_until_cancelled(compare(&self.services, host.id)).await;
            (host.id, result.unwrap_or(Ok(())))
        }))
        .await;
        let failed =
            compared.into_iter().filter_map(|(host, result)| result.err().map(|error| (host, error)));
        let mut first = Ok(());
        for (host, error) in failed {
            tracing::debug!(%host, error = %error.chain(), "a host could not be compared");
            first = first.and(Err(error));
        }
        first
    }
}
