//! Whatever has an id, found by it.

use async_graphql::{Context, ID, Interface, Object};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use wrenn_entities::{
    ApiKeyId, CapsuleId, HostId, TeamId, TemplateId, UserId, api_key, host, id::TypedId, membership, team,
    user,
};

use crate::{
    Error,
    access::{Actor, Member, key_caller, services},
    account::User,
    capsule::{self, Capsule},
    error::parse_id,
    host::Host,
    key::ApiKey,
    team::Team,
    template::{self, Template},
};

/// What has an id.
#[derive(Interface)]
#[graphql(field(name = "id", ty = "ID"))]
pub enum Node {
    Capsule(Capsule),
    Template(Template),
    Team(Team),
    Host(Host),
    User(User),
    ApiKey(ApiKey),
}

#[derive(Default)]
pub struct NodeQuery;

#[Object]
impl NodeQuery {
    /// Whatever has this id. What is not for the caller is `NOT_FOUND`, like what is not there.
    #[graphql(guard = "Member")]
    async fn node(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Node>, Error> {
        let actor = Actor::of(ctx)?;
        let db = &services(ctx)?.db;
        let missing = || Error::not_found(format!("there is no `{}`", id.as_str()));
        let prefix = id.split_once('-').map_or("", |(prefix, _)| prefix);
        let node = match prefix {
            CapsuleId::PREFIX => {
                Node::Capsule(capsule::find(db, actor.team_id, parse_id("id", &id)?).await?.into())
            }
            TemplateId::PREFIX => {
                let id: TemplateId = parse_id("id", &id)?;
                Node::Template(Template(template::find(db, actor.team_id, "id", &id.to_string()).await?))
            }
            TeamId::PREFIX => {
                let wanted: TeamId = parse_id("id", &id)?;
                if wanted != actor.team_id && wanted != TeamId::PLATFORM {
                    return Err(missing());
                }
                Node::Team(Team(team::Entity::find_by_id(wanted).one(db).await?.ok_or_else(missing)?))
            }
            HostId::PREFIX => {
                let wanted: HostId = parse_id("id", &id)?;
                if !key_caller(ctx)?.is_platform_admin() {
                    return Err(missing());
                }
                Node::Host(Host(host::Entity::find_by_id(wanted).one(db).await?.ok_or_else(missing)?))
            }
            UserId::PREFIX => {
                let wanted: UserId = parse_id("id", &id)?;
                membership::Entity::find_by_id((wanted, actor.team_id)).one(db).await?.ok_or_else(missing)?;
                Node::User(User(user::Entity::find_by_id(wanted).one(db).await?.ok_or_else(missing)?))
            }
            ApiKeyId::PREFIX => {
                let wanted: ApiKeyId = parse_id("id", &id)?;
                let row = api_key::Entity::find_by_id(wanted)
                    .filter(api_key::Column::TeamId.eq(actor.team_id))
                    .one(db)
                    .await?;
                Node::ApiKey(ApiKey(row.ok_or_else(missing)?))
            }
            _ => {
                return Err(Error::invalid(
                    "id",
                    "an id begins with one of `cl-`, `tpl-`, `team-`, `host-`, `user-`, `key-`",
                ));
            }
        };
        Ok(Some(node))
    }
}
