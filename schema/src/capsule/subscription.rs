//! Watching capsules: the present first, then every change, and nothing missed between.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_graphql::{Context, ID, SimpleObject, Subscription};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use sea_orm::{ColumnTrait, Condition, QueryFilter, QueryOrder, QuerySelect};
use wrenn_entities::{
    CapsuleId, TeamId,
    capsule::{self, CapsuleState, Model},
};

use super::{
    Capsule,
    filter::{CapsuleFilter, Resolved},
    find,
    reach::live,
};
use crate::{
    Error, Services,
    access::{Actor, Member, caller, loaders, services, while_allowed},
    bus::{Change, Received},
    error::parse_id,
    host::Placed,
    loader::Loaders,
    port,
};

/// Rows read at once for the present state.
const CHUNK: u64 = 200;
/// How long a host may take to begin telling of a capsule's ports before the capsule is shown without waiting for it.
const PORTS: Duration = Duration::from_secs(2);

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

    /// Those that the filter means, one by one, then every change.
    #[graphql(guard = "Member")]
    async fn capsules(
        &self,
        ctx: &Context<'_>,
        filter: Option<CapsuleFilter>,
    ) -> Result<impl Stream<Item = Result<CapsuleChange, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let team_id = Actor::of(ctx)?.team_id;
        let filter = filter.unwrap_or_default().resolve(&services.db, team_id).await?;
        let inner = many(services.clone(), loaders(ctx)?.clone(), team_id, filter);
        Ok(while_allowed(services, caller(ctx)?.clone(), inner))
    }
}

/// How new a row is. Activity does not change the generation.
type Version = (i64, Option<chrono::DateTime<chrono::Utc>>);

fn version(row: &Model) -> Version {
    (row.generation, row.last_active_at)
}

/// An item whenever the capsule's ports have changed since this was called; nothing ever while it is not running.
async fn port_changes(
    services: &Arc<Services>,
    actor: &Actor,
    placed: Option<Placed>,
) -> BoxStream<'static, ()> {
    let Some(placed) = placed else { return stream::pending().boxed() };
    let mut changes = port::changes(services.clone(), actor.request_id.clone(), placed).boxed();
    // Who is told of changes first and looks then misses nothing. A host that takes too long is not waited for: once it
    // tells, that counts as a change.
    let _ = tokio::time::timeout(PORTS, changes.next()).await;
    changes
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
        let mut changes = services.bus.subscribe();
        let mut row = Arc::new(find(&services.db, team_id, id).await?);
        let mut ports = stream::pending().boxed();
        let mut watched = None;
        loop {
            let shown = version(&row);
            let last = row.state == CapsuleState::Stopped;
            if with_ports && watched != live(&row) {
                watched = live(&row);
                ports = port_changes(&services, &actor, watched).await;
            }
            loaders.forget().await;
            yield Capsule::from(row.clone());
            if last {
                break;
            }
            row = loop {
                let received = tokio::select! {
                    received = changes.receive() => received,
                    Some(()) = ports.next() => break row,
                };
                let newer = match received {
                    Received::Change(Change::Capsule(row)) if row.id == id => row,
                    Received::Change(Change::CapsuleWithdrawn { id: gone, .. }) if gone == id => {
                        Err(Error::not_found(format!("the capsule {id} could not be made")))?
                    }
                    Received::Change(_) => continue,
                    Received::Missed => Arc::new(find(&services.db, team_id, id).await?),
                    Received::Closed => return,
                };
                if version(&newer) > shown {
                    break newer;
                }
            };
        }
    }
}

fn many(
    services: Arc<Services>,
    loaders: Arc<Loaders>,
    team_id: TeamId,
    filter: Resolved,
) -> impl Stream<Item = Result<CapsuleChange, Error>> + Send {
    async_stream::try_stream! {
        let mut changes = services.bus.subscribe();
        // What the subscriber was shown and still counts as listed.
        let mut shown: HashMap<CapsuleId, Version> = HashMap::new();
        let mut read_all = true;
        loop {
            if read_all {
                let mut before = std::mem::take(&mut shown);
                let mut after = None;
                loop {
                    let rows = chunk(&services, team_id, &filter, after).await?;
                    let Some(last) = rows.last() else { break };
                    after = Some((last.created_at, last.id));
                    loaders.forget().await;
                    rows.iter().for_each(|row| loaders.announce_capsule(row));
                    for row in rows {
                        let known = before.remove(&row.id);
                        shown.insert(row.id, version(&row));
                        if known.is_none_or(|known| version(&row) > known) {
                            yield CapsuleChange::now(Arc::new(row));
                        }
                    }
                }
                for gone in before.into_keys() {
                    yield CapsuleChange::removed(gone);
                }
                read_all = false;
            }
            match changes.receive().await {
                Received::Change(Change::Capsule(row)) if row.team_id == team_id => {
                    let known = shown.get(&row.id).copied();
                    if known.is_some_and(|known| version(&row) <= known) {
                        continue;
                    }
                    if filter.matches(&row) {
                        shown.insert(row.id, version(&row));
                        loaders.forget().await;
                        yield CapsuleChange::now(row);
                    } else if shown.remove(&row.id).is_some() {
                        yield CapsuleChange::removed(row.id);
                    }
                }
                Received::Change(Change::CapsuleWithdrawn { team_id: of, id }) if of == team_id => {
                    if shown.remove(&id).is_some() {
                        yield CapsuleChange::removed(id);
                    }
                }
                Received::Change(_) => {}
                Received::Missed => read_all = true,
                Received::Closed => return,
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
