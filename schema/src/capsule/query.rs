//! Finding capsules.

use async_graphql::{
    Context, ID, Object,
    connection::{Connection, EmptyFields},
};
use wrenn_entities::capsule;

use super::{Capsule, filter::CapsuleFilter, find};
use crate::{
    Error,
    access::{Actor, Member, loaders, services},
    error::parse_id,
    page::{self, Arguments, Cursor, Total},
};

#[derive(Default)]
pub struct CapsuleQuery;

#[Object]
impl CapsuleQuery {
    /// One capsule, also one that is stopped.
    #[graphql(guard = "Member")]
    async fn capsule(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Capsule>, Error> {
        let actor = Actor::of(ctx)?;
        Ok(Some(find(&services(ctx)?.db, actor.team_id, parse_id("id", &id)?).await?.into()))
    }

    /// The team's capsules, oldest first. Without `states` those that are stopped are left out.
    #[graphql(guard = "Member", complexity = "page::cost(first, last) * child_complexity + 1")]
    async fn capsules(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<CapsuleFilter>,
    ) -> Result<Connection<String, Capsule, Total, EmptyFields>, Error> {
        let actor = Actor::of(ctx)?;
        let (db, loaders) = (&services(ctx)?.db, loaders(ctx)?);
        let filter = filter.unwrap_or_default().resolve(db, actor.team_id).await?;
        page::read(
            db,
            filter.select(db, actor.team_id),
            (capsule::Column::CreatedAt, capsule::Column::Id),
            &Arguments { first, after, last, before },
            |row| {
                loaders.announce_capsule(&row);
                (Cursor { created_at: row.created_at, id: row.id.into() }, row.into())
            },
        )
        .await
    }
}
