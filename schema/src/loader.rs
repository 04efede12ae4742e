//! What many fields of one operation point at, read once for all of them.
//!
//! Whoever makes a list announces what its items point at; the first field that really asks reads everything announced
//! in one go, and the others find it there. So a list costs the same number of statements however long it is, and
//! nothing waits for others to come. What was read is kept until [`Loaders::forget`]: between the events of a
//! subscription and between the fields of a mutation nothing is.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use tokio::sync::{Semaphore, SemaphorePermit};
use wrenn_entities::{CapsuleId, HostId, TeamId, TemplateId, capsule, host, team, template};

use crate::{
    Error, Services,
    access::RequestId,
    capsule::reach::live,
    host::Placed,
    metrics::{self, CapsuleMetricPoint, MetricsRange},
    port::{self, Port},
    process::{self, Process},
};

/// Calls of one operation under way at a time, of those that ask about one capsule.
const AT_ONCE: usize = 16;

/// Things of one kind.
struct Batch<K, V> {
    announced: Mutex<HashSet<K>>,
    /// What is there and what is known not to be; or why it could not be read.
    known: tokio::sync::Mutex<Result<HashMap<K, Option<V>>, Error>>,
}

impl<K, V> Default for Batch<K, V> {
    fn default() -> Self {
        Self { announced: Mutex::default(), known: tokio::sync::Mutex::new(Ok(HashMap::new())) }
    }
}

impl<K: Copy + Eq + Hash, V: Clone> Batch<K, V> {
    fn announce(&self, key: K) {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    }

    async fn get<F>(&self, key: K, read: impl FnOnce(Vec<K>) -> F) -> Result<Option<V>, Error>
    where
        F: Future<Output = Result<HashMap<K, V>, Error>>,
    {
        // Held while reading: whoever comes meanwhile waits for this reading instead of beginning another.
        let mut guard = self.known.lock().await;
        let known = guard.as_mut().map_err(|error| error.clone())?;
        if let Some(value) = known.get(&key) {
            return Ok(value.clone());
        }
        let mut wanted = std::mem::take(&mut *self.announced.lock().unwrap_or_else(PoisonError::into_inner));
        wanted.insert(key);
        wanted.retain(|key| !known.contains_key(key));
        match read(wanted.iter().copied().collect()).await {
            Ok(mut found) => {
                known.extend(wanted.into_iter().map(|key| (key, found.remove(&key))));
                Ok(known.get(&key).cloned().flatten())
            }
            Err(error) => {
                // One try an operation: a hundred fields do not wait for a database that is away one after the other.
                *guard = Err(error.clone());
                Err(error)
            }
        }
    }

    async fn forget(&self) {
        *self.known.lock().await = Ok(HashMap::new());
    }
}

/// The loaders of one operation.
pub(crate) struct Loaders {
    services: Arc<Services>,
    request_id: RequestId,
    templates: Batch<TemplateId, template::Model>,
    teams: Batch<TeamId, team::Model>,
    hosts: Batch<HostId, host::Model>,
    capsules: Batch<CapsuleId, Arc<capsule::Model>>,
    /// Each with an answer of its own: that one host is away is not the failure of another.
    processes: Batch<Placed, Result<Vec<Process>, Error>>,
    ports: Batch<Placed, Result<Vec<Port>, Error>>,
    /// By range: that is known only when it is asked for.
    metrics: [Batch<Placed, Result<Vec<CapsuleMetricPoint>, Error>>; MetricsRange::COUNT],
    public_ports: Batch<CapsuleId, Vec<u16>>,
    /// For what each capsule is asked on its own.
    turns: Semaphore,
}

impl Loaders {
    pub(crate) fn new(services: Arc<Services>, request_id: RequestId) -> Self {
        Self {
            services,
            request_id,
            templates: Batch::default(),
            teams: Batch::default(),
            hosts: Batch::default(),
            capsules: Batch::default(),
            processes: Batch::default(),
            ports: Batch::default(),
            metrics: Default::default(),
            public_ports: Batch::default(),
            turns: Semaphore::new(AT_ONCE),
        }
    }

    /// What fields of this capsule may ask for.
    pub(crate) fn announce_capsule(&self, row: &capsule::Model) {
        self.templates.announce(row.template_id);
        self.teams.announce(row.team_id);
        self.public_ports.announce(row.id);
        if let Some(parent) = row.parent_id {
            self.capsules.announce(parent);
        }
        if let Some(host) = row.host_id {
            self.hosts.announce(host);
        }
        if let Some(placed) = live(row) {
            self.processes.announce(placed);
            self.ports.announce(placed);
        }
        if let Ok(placed) = metrics::measured(row) {
            self.metrics.iter().for_each(|range| range.announce(placed));
        }
    }

    /// What fields of this template may ask for.
    pub(crate) fn announce_template(&self, row: &template::Model) {
        self.teams.announce(row.team_id);
        if let Some(host) = row.host_id {
            self.hosts.announce(host);
        }
    }

    pub(crate) async fn template(&self, id: TemplateId) -> Result<Option<template::Model>, Error> {
        self.templates
            .get(id, async |ids| {
                let rows = template::Entity::find()
                    .filter(template::Column::Id.is_in(ids))
                    .all(&self.services.db)
                    .await?;
                rows.iter().for_each(|row| self.announce_template(row));
                Ok(rows.into_iter().map(|row| (row.id, row)).collect())
            })
            .await
    }

    pub(crate) async fn team(&self, id: TeamId) -> Result<Option<team::Model>, Error> {
        self.teams
            .get(id, async |ids| {
                let rows =
                    team::Entity::find().filter(team::Column::Id.is_in(ids)).all(&self.services.db).await?;
                Ok(rows.into_iter().map(|row| (row.id, row)).collect())
            })
            .await
    }

    pub(crate) async fn host(&self, id: HostId) -> Result<Option<host::Model>, Error> {
        self.hosts
            .get(id, async |ids| {
                let rows =
                    host::Entity::find().filter(host::Column::Id.is_in(ids)).all(&self.services.db).await?;
                Ok(rows.into_iter().map(|row| (row.id, row)).collect())
            })
            .await
    }

    pub(crate) async fn capsule(&self, id: CapsuleId) -> Result<Option<Arc<capsule::Model>>, Error> {
        self.capsules
            .get(id, async |ids| {
                let rows = capsule::Entity::find()
                    .filter(capsule::Column::Id.is_in(ids))
                    .all(&self.services.db)
                    .await?;
                rows.iter().for_each(|row| self.announce_capsule(row));
                Ok(rows.into_iter().map(|row| (row.id, Arc::new(row))).collect())
            })
            .await
    }

    pub(crate) async fn processes(&self, placed: Placed) -> Result<Vec<Process>, Error> {
        let list =
            self.processes
                .get(placed, async |capsules| {
                    Ok(process::lists(&self.services, &self.request_id, capsules).await)
                })
                .await?;
        list.unwrap_or_else(|| Ok(Vec::new()))
    }

    pub(crate) async fn ports(&self, placed: Placed) -> Result<Vec<Port>, Error> {
        let list = self
            .ports
            .get(placed, async |capsules| Ok(port::lists(&self.services, &self.request_id, capsules).await))
            .await?;
        let public = self.public_ports(placed.1).await?;
        let list = list.unwrap_or_else(|| Ok(Vec::new()))?;
        Ok(list.into_iter().map(|port| port.among(&public)).collect())
    }

    pub(crate) async fn metrics(
        &self,
        placed: Placed,
        range: MetricsRange,
    ) -> Result<Vec<CapsuleMetricPoint>, Error> {
        let points = self.metrics[range as usize]
            .get(placed, async |capsules| {
                Ok(metrics::points(&self.services, &self.request_id, capsules, range).await)
            })
            .await?;
        points.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// To ask a host about one capsule, for as long as it is held: what has arguments of its own is not batched, and a
    /// list of many capsules must not ask for all of it at once.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        self.turns.acquire().await.ok()
    }

    pub(crate) async fn public_ports(&self, id: CapsuleId) -> Result<Vec<u16>, Error> {
        let ports =
            self.public_ports.get(id, async |ids| port::public_ports(&self.services.db, ids).await).await?;
        Ok(ports.unwrap_or_default())
    }

    /// Whatever is asked for from now on is read afresh.
    pub(crate) async fn forget(&self) {
        self.templates.forget().await;
        self.teams.forget().await;
        self.hosts.forget().await;
        self.capsules.forget().await;
        self.processes.forget().await;
        self.ports.forget().await;
        for range in &self.metrics {
            range.forget().await;
        }
        self.public_ports.forget().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_was_announced_is_read_at_once() {
        let batch: Batch<u8, u8> = Batch::default();
        let reads = AtomicUsize::new(0);
        (0..100).for_each(|key| batch.announce(key));
        let read = async |keys: Vec<u8>| {
            reads.fetch_add(1, Ordering::SeqCst);
            Ok(keys.into_iter().filter(|key| *key != 7).map(|key| (key, key)).collect())
        };
        let all = futures_util::future::join_all((0..100).map(|key| batch.get(key, read))).await;
        assert_eq!(reads.load(Ordering::SeqCst), 1);
        for (key, value) in (0u8..).zip(all) {
            assert_eq!(value.expect("is read"), (key != 7).then_some(key));
        }
        batch.forget().await;
        assert_eq!(batch.get(1, read).await.expect("is read"), Some(1));
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_failure_is_not_tried_again_by_every_field() {
        let batch: Batch<u8, u8> = Batch::default();
        let reads = AtomicUsize::new(0);
        let read = async |_: Vec<u8>| {
            reads.fetch_add(1, Ordering::SeqCst);
            Err(Error::unavailable("away"))
        };
        for key in 0..10 {
            batch.get(key, read).await.expect_err("is away");
        }
        assert_eq!(reads.load(Ordering::SeqCst), 1);
        batch.forget().await;
        batch.get(1, read).await.expect_err("is away");
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }
}
