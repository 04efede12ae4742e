//! People, and who the caller is.

use async_graphql::{Context, ID, Object, SimpleObject};
use chrono::{DateTime, Utc};
use sea_orm::EntityTrait;
use wrenn_entities::{api_key, user};

use crate::{
    Error,
    access::{Member, key_caller, loaders, services},
    key::ApiKey,
    team::Team,
};

/// A person.
pub struct User(pub(crate) user::Model);

/// A person.
#[Object]
impl User {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    async fn name(&self) -> &str {
        &self.0.name
    }

    async fn email(&self) -> &str {
        &self.0.email
    }

    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
}

/// Who asks. With an API key the user is the one who made it.
#[derive(SimpleObject)]
pub struct Viewer {
    user: Option<User>,
    team: Option<Team>,
    api_key: Option<ApiKey>,
}

#[derive(Default)]
pub struct ViewerQuery;

#[Object]
impl ViewerQuery {
    /// Who asks.
    #[graphql(guard = "Member")]
    async fn viewer(&self, ctx: &Context<'_>) -> Result<Viewer, Error> {
        let caller = key_caller(ctx)?;
        let db = &services(ctx)?.db;
        let key = api_key::Entity::find_by_id(caller.id).one(db).await?;
        let user = match key.as_ref().and_then(|key| key.created_by) {
            Some(id) => user::Entity::find_by_id(id).one(db).await?,
            None => None,
        };
        let team = loaders(ctx)?.team(caller.team_id).await?;
        Ok(Viewer { user: user.map(User), team: team.map(Team), api_key: key.map(ApiKey) })
    }
}
