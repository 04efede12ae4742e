//! Watching capsules: the present first, then every change, and nothing missed between.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use async_graphql::{Context, ID, SimpleObject, Subscription};
use futures_util::{Stream, future::Either};
use sea_orm::{ColumnTrait, Condition, QueryFilter, QueryOrder, QuerySelect};
use wrenn_entities::{
    CapsuleId, TeamId,
    capsule::{self, CapsuleState, Model},
};

use super::{
    Capsule,
    filter::{CapsuleFilter, Resolved},
    find,
    port_watch::PortChanges,
};
use crate::{
    Code, Error, Services,
    access::{Actor, Member, caller, loaders, services, while_allowed},
    bus::{Change, Received, Topic},
    error::parse_id,
    loader::Loaders,
};

/// Rows read at once for the present state.
const CHUNK: u64 = 200;

/// What changed: the capsule as it is now, or its id when it is gone from the list.
#[derive(SimpleObject)]
pub struct CapsuleChange {
    capsule: Option<Capsule>,
    removed_id: Option<ID>,
}

impl CapsuleChange {
    fn now(row: Arc<Model>) -> Self {
        Self { capsule: Some(row.into()), removed_id: None }
    }

    fn removed(id: CapsuleId) -> Self {
        Self { capsule: None, removed_id: Some(id.to_string().into()) }
    }
}

#[derive(Default)]
pub struct CapsuleSubscription;

#[Subscription]
impl CapsuleSubscription {
    /// The present state first, then every change, also of its ports where they are asked for; ends with the capsule.
    #[graphql(guard = "Member")]
    async fn capsule(
        &self,
        ctx: &Context<'_>,
        id: ID,
    ) -> Result<impl Stream<Item = Result<Capsule, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let loaders = loaders(ctx)?.clone();
        // Only who wants to see ports costs the host a stream of them.
        let ports = ctx.look_ahead().field("ports").exists();
        let inner = one(services.clone(), loaders, Actor::of(ctx)?, parse_id("id", &id)?, ports);
        Ok(while_allowed(services, caller(ctx)?.clone(), inner))
    }

    /// Those that the filter means, one by one, then every change, also of their ports where they are asked for.
    #[graphql(guard = "Member")]
    async fn capsules(
        &self,
        ctx: &Context<'_>,
        filter: Option<CapsuleFilter>,
    ) -> Result<impl Stream<Item = Result<CapsuleChange, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let team_id = Actor::of(ctx)?.team_id;
        let filter = filter.unwrap_or_default().resolve(&services.db, team_id).await?;
        let ports = ctx.look_ahead().field("capsule").field("ports").exists();
        let inner = many(services.clone(), loaders(ctx)?.clone(), team_id, filter, ports);
        Ok(while_allowed(services, caller(ctx)?.clone(), inner))
    }
}

/// How new a row is. Activity does not change the generation.
type Version = (i64, Option<chrono::DateTime<chrono::Utc>>);

fn version(row: &Model) -> Version {
    (row.generation, row.last_active_at)
}

/// Whether there is no such capsule (any more).
fn is_withdrawn(change: &Change) -> bool {
    matches!(change, Change::CapsuleWithdrawn { .. })
}

/// That there is none is no failure.
fn found(row: Result<Model, Error>) -> Result<Option<Model>, Error> {
    match row {
        Err(error) if error.code() == Code::NotFound => Ok(None),
        row => row.map(Some),
    }
}

fn one(
    services: Arc<Services>,
    loaders: Arc<Loaders>,
    actor: Actor,
    id: CapsuleId,
    with_ports: bool,
) -> impl Stream<Item = Result<Capsule, Error>> + Send {
    async_stream::try_stream! {
        let team_id = actor.team_id;
        let mut changes = services.bus.subscribe(Topic::Capsule(id));
        let mut row = Arc::new(find(&services.db, team_id, id).await?);
        let mut ports = PortChanges::default();
        loop {
            let shown = version(&row);
            let last = row.state == CapsuleState::Stopped;
            if with_ports {
                ports.follow(&services, [&*row]).await;
            }
            loaders.forget().await;
            yield Capsule::from(row.clone());
            if last {
                break;
            }
            row = loop {
                let received = tokio::select! {
                    received = changes.receive() => received,
                    _ = ports.next() => break row,
                };
                let newer = match received {
                    Received::Change(Change::Capsule(row)) => row,
                    Received::Change(change) if is_withdrawn(&change) => {
                        Err(Error::not_found(format!("the capsule {id} could not be made")))?
                    }
                    Received::Change(_) => continue,
                    Received::Missed => Arc::new(find(&services.db, team_id, id).await?),
                };
                if version(&newer) > shown {
                    break newer;
                }
            };
        }
    }
}

/// Removed capsules of which it is remembered how new they were: what is late is late by less than so many.
const REMEMBERED: usize = 256;

/// What the subscriber to a list was shown, so that it is never led back: two replicas' changes of one capsule may come
/// in another order than they were made.
#[derive(Default)]
struct Shown {
    listed: HashMap<CapsuleId, Version>,
    removed: HashMap<CapsuleId, Version>,
    order: VecDeque<CapsuleId>,
}

impl Shown {
    /// Whether the row is newer than what was shown of it.
    fn is_news(&self, row: &Model) -> bool {
        let known = self.listed.get(&row.id).or_else(|| self.removed.get(&row.id));
        known.is_none_or(|known| version(row) > *known)
    }

    fn list(&mut self, row: &Model) {
        self.removed.remove(&row.id);
        self.listed.insert(row.id, version(row));
    }

    /// Takes one from the list for something of this version. True: it was there.
    fn remove(&mut self, id: CapsuleId, by: Version) -> bool {
        if self.removed.insert(id, by).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.removed.remove(&oldest);
        }
        self.listed.remove(&id).is_some()
    }
}

fn many(
    services: Arc<Services>,
    loaders: Arc<Loaders>,
    team_id: TeamId,
    filter: Resolved,
    with_ports: bool,
) -> impl Stream<Item = Result<CapsuleChange, Error>> + Send {
    async_stream::try_stream! {
        let mut changes = services.bus.subscribe(Topic::Team(team_id));
        let mut shown = Shown::default();
        let mut ports = PortChanges::default();
        let mut read_all = true;
        loop {
            if read_all {
                let mut before: HashSet<CapsuleId> = shown.listed.keys().copied().collect();
                let mut after = None;
                loop {
                    let rows = chunk(&services, team_id, &filter, after).await?;
                    let Some(last) = rows.last() else { break };
                    after = Some((last.created_at, last.id));
                    if with_ports {
                        ports.follow(&services, &rows).await;
                    }
                    loaders.forget().await;
                    rows.iter().for_each(|row| loaders.announce_capsule(row));
                    for row in rows {
                        before.remove(&row.id);
                        if shown.is_news(&row) {
                            shown.list(&row);
                            yield CapsuleChange::now(Arc::new(row));
                        }
                    }
                }
                for gone in before {
                    let last_shown = shown.listed.get(&gone).copied().unwrap_or_default();
                    shown.remove(gone, last_shown);
                    ports.forget(gone);
                    yield CapsuleChange::removed(gone);
                }
                read_all = false;
            }
            let received = tokio::select! {
                received = changes.receive() => Either::Left(received),
                id = ports.next() => Either::Right(id),
            };
            let received = match received {
                Either::Left(received) => received,
                // Whatever else changed of it meanwhile is told by the bus as well.
                Either::Right(id) => {
                    let row = found(find(&services.db, team_id, id).await)?;
                    let listed = |row: &Model| shown.listed.contains_key(&id) && filter.matches(row);
                    if let Some(row) = row.filter(listed) {
                        shown.list(&row);
                        loaders.forget().await;
                        yield CapsuleChange::now(Arc::new(row));
                    }
                    continue;
                }
            };
            match received {
                Received::Change(Change::Capsule(row)) => {
                    if !shown.is_news(&row) {
                        continue;
                    }
                    if filter.matches(&row) {
                        shown.list(&row);
                        if with_ports {
                            ports.follow(&services, [&*row]).await;
                        }
                        loaders.forget().await;
                        yield CapsuleChange::now(row);
                    } else {
                        ports.forget(row.id);
                        if shown.remove(row.id, version(&row)) {
                            yield CapsuleChange::removed(row.id);
                        }
                    }
                }
                Received::Change(Change::CapsuleWithdrawn { id, .. }) => {
                    ports.forget(id);
                    if shown.remove(id, (i64::MAX, None)) {
                        yield CapsuleChange::removed(id);
                    }
                }
                Received::Change(_) => {}
                Received::Missed => read_all = true,
            }
        }
    }
}

async fn chunk(
    services: &Services,
    team_id: TeamId,
    filter: &Resolved,
    after: Option<(chrono::DateTime<chrono::Utc>, CapsuleId)>,
) -> Result<Vec<Model>, Error> {
    use capsule::Column;
    let mut select = filter.select(&services.db, team_id);
    if let Some((created_at, id)) = after {
        select = select.filter(
            Condition::any()
                .add(Column::CreatedAt.gt(created_at))
                .add(Condition::all().add(Column::CreatedAt.eq(created_at)).add(Column::Id.gt(id))),
        );
    }
    Ok(select.order_by_asc(Column::CreatedAt).order_by_asc(Column::Id).limit(CHUNK).all(&services.db).await?)
}
