//! Templates: what capsules start from.

pub(crate) mod lifecycle;
mod mutation;

use async_graphql::{
    Context, Enum, ID, InputObject, Object,
    connection::{Connection, EmptyFields},
};
use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, Select};
use wrenn_entities::{
    TeamId, TemplateId,
    id::DIGITS,
    template::{self, TemplateState},
};

pub use self::mutation::{TemplateMutation, TemplatePayload};

use crate::{
    Error,
    access::{Actor, Member, loaders, services},
    error::parse_id,
    host::Host,
    page::{self, Arguments, Cursor, Total},
    scalar::BigInt,
    team::Team,
};

/// What capsules start from.
pub struct Template(pub(crate) template::Model);

#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "template::TemplateKind")]
pub enum TemplateKind {
    /// A disk.
    Image,
    /// A disk and the memory that goes with it.
    Snapshot,
}

/// What capsules start from.
#[Object]
impl Template {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    async fn name(&self) -> &str {
        &self.0.name
    }

    async fn kind(&self) -> TemplateKind {
        self.0.kind.into()
    }

    /// Whose it is; the platform's can be used by every team.
    async fn team(&self, ctx: &Context<'_>) -> Result<Team, Error> {
        let team = loaders(ctx)?.team(self.0.team_id).await?;
        team.map(Team).ok_or_else(|| Error::not_found("the template's team is gone"))
    }

    /// What a capsule gets when its creator does not say otherwise.
    async fn vcpus(&self) -> i32 {
        self.0.vcpus
    }

    async fn memory_mib(&self) -> i32 {
        self.0.memory_mib
    }

    async fn disk_mib(&self) -> i32 {
        self.0.disk_mib
    }

    /// Of a snapshot: the host that has its files; capsules made from it run there.
    async fn host(&self, ctx: &Context<'_>) -> Result<Option<Host>, Error> {
        match self.0.host_id {
            Some(id) => Ok(loaders(ctx)?.host(id).await?.map(Host)),
            None => Ok(None),
        }
    }

    /// Of a snapshot: the capsule that it is a moment of. That may be gone.
    async fn source_capsule_id(&self) -> Option<ID> {
        self.0.source_capsule_id.map(|id| id.to_string().into())
    }

    /// Of a snapshot: what it takes on its host's disk, without what it shares with other files.
    async fn size_bytes(&self) -> Option<BigInt> {
        self.0.size_bytes.and_then(|size| u64::try_from(size).ok()).map(BigInt)
    }

    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
}

#[derive(InputObject, Default)]
pub struct TemplateFilter {
    /// Part of the name.
    search: Option<String>,
}

/// What the team can use: its own and the platform's.
pub(crate) fn visible(team_id: TeamId) -> Select<template::Entity> {
    template::Entity::find()
        .filter(template::Column::TeamId.is_in([team_id, TeamId::PLATFORM]))
        .filter(template::Column::State.eq(TemplateState::Ready))
        .filter(template::Column::DeletedAt.is_null())
}

/// The template that an id or a name stands for; of two with the same name the team's own.
pub(crate) async fn find(
    db: &impl ConnectionTrait,
    team_id: TeamId,
    field: &str,
    id_or_name: &str,
) -> Result<template::Model, Error> {
    let wanted = if is_id(id_or_name) {
        template::Column::Id.eq(parse_id::<TemplateId>(field, id_or_name)?)
    } else {
        template::Column::Name.eq(id_or_name)
    };
    let found = visible(team_id).filter(wanted).all(db).await?;
    let own = found.iter().position(|row| row.team_id == team_id).unwrap_or(0);
    found.into_iter().nth(own).ok_or_else(|| {
        let shown = id_or_name.chars().take(64).collect::<String>();
        Error::not_found(format!("there is no template `{shown}`")).with_field(field)
    })
}

/// Whether it is meant as an id, if only as one of another kind. Nothing else should be called like that.
fn is_id(text: &str) -> bool {
    text.split_once('-').is_some_and(|(prefix, digits)| {
        prefix.bytes().all(|byte| byte.is_ascii_lowercase())
            && digits.len() == DIGITS
            && digits.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
    })
}

/// `LIKE` pattern of "contains", for the escape character `\`.
pub(crate) fn contains_pattern(text: &str) -> String {
    let escaped = text.to_lowercase().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    format!("%{escaped}%")
}

#[derive(Default)]
pub struct TemplateQuery;

#[Object]
impl TemplateQuery {
    /// One template, by its id or by its name.
    #[graphql(guard = "Member")]
    async fn template(
        &self,
        ctx: &Context<'_>,
        id: Option<ID>,
        name: Option<String>,
    ) -> Result<Option<Template>, Error> {
        let actor = Actor::of(ctx)?;
        let db = &services(ctx)?.db;
        let row = match (id, name) {
            (Some(id), None) => {
                let id: TemplateId = parse_id("id", &id)?;
                find(db, actor.team_id, "id", &id.to_string()).await?
            }
            (None, Some(name)) => find(db, actor.team_id, "name", &name).await?,
            _ => return Err(Error::invalid("id", "exactly one of `id` and `name` is wanted")),
        };
        Ok(Some(Template(row)))
    }

    /// The team's templates and the platform's.
    #[graphql(guard = "Member", complexity = "page::cost(first, last) * child_complexity + 1")]
    async fn templates(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<TemplateFilter>,
    ) -> Result<Connection<String, Template, Total, EmptyFields>, Error> {
        let actor = Actor::of(ctx)?;
        let loaders = loaders(ctx)?;
        let mut select = visible(actor.team_id);
        if let Some(search) = filter.and_then(|filter| filter.search) {
            select = select.filter(Condition::all().add(name_contains(&search)));
        }
        page::read(
            &services(ctx)?.db,
            select,
            (template::Column::CreatedAt, template::Column::Id),
            &Arguments { first, after, last, before },
            |row| {
                loaders.announce_template(&row);
                (Cursor { created_at: row.created_at, id: row.id.into() }, Template(row))
            },
        )
        .await
    }
}

fn name_contains(search: &str) -> sea_orm::sea_query::SimpleExpr {
    use sea_orm::sea_query::{Expr, ExprTrait, Func, LikeExpr};
    Expr::expr(Func::lower(Expr::col((template::Entity, template::Column::Name))))
        .like(LikeExpr::new(contains_pattern(search)).escape('\\'))
}
