//! Which capsules of a team are meant; the same in SQL and in memory.

use async_graphql::InputObject;
use sea_orm::{
    ColumnTrait, Condition, DatabaseConnection, DbBackend, EntityTrait, QueryFilter, Select,
    prelude::Expr,
    sea_query::{ExprTrait, Func, LikeExpr},
};
use wrenn_entities::{
    CapsuleId, TeamId, TemplateId,
    capsule::{self, Model},
};

use super::{CapsuleState, rules};
use crate::{Error, scalar::Labels, template};

#[derive(InputObject, Clone, Default)]
pub struct CapsuleFilter {
    /// Those in one of these states; all but the stopped ones if absent.
    states: Option<Vec<CapsuleState>>,
    /// Id or name of their template.
    template: Option<String>,
    /// Those that have all of these.
    labels: Option<Labels>,
    /// Part of the name, or the whole id.
    search: Option<String>,
}

/// A filter whose names were looked up.
#[derive(Clone)]
pub(super) struct Resolved {
    states: Option<Vec<capsule::CapsuleState>>,
    template: Option<TemplateId>,
    labels: Labels,
    search: Option<String>,
}

impl CapsuleFilter {
    pub(super) async fn resolve(self, db: &DatabaseConnection, team_id: TeamId) -> Result<Resolved, Error> {
        let labels = self.labels.unwrap_or_default();
        rules::labels(&labels.0)?;
        let template = match self.template {
            Some(template) => Some(template::find(db, team_id, "template", &template).await?.id),
            None => None,
        };
        Ok(Resolved {
            states: self.states.map(|states| states.into_iter().map(Into::into).collect()),
            template,
            labels,
            search: self.search.map(|text| text.to_lowercase()),
        })
    }
}

impl Resolved {
    /// As a statement.
    pub(super) fn select(&self, db: &DatabaseConnection, team_id: TeamId) -> Select<capsule::Entity> {
        use capsule::Column;
        let mut select = capsule::Entity::find().filter(Column::TeamId.eq(team_id));
        select = match &self.states {
            Some(states) => select.filter(Column::State.is_in(states.iter().copied())),
            None => select.filter(Column::State.ne(capsule::CapsuleState::Stopped)),
        };
        if let Some(template) = self.template {
            select = select.filter(Column::TemplateId.eq(template));
        }
        for (name, value) in &self.labels.0 {
            select = select.filter(has_label(db.get_database_backend(), name, value));
        }
        if let Some(search) = &self.search {
            let name = Expr::expr(Func::lower(Expr::col((capsule::Entity, Column::Name))))
                .like(LikeExpr::new(template::contains_pattern(search)).escape('\\'));
            let mut found = Condition::any().add(name);
            if let Ok(id) = search.parse::<CapsuleId>() {
                found = found.add(Column::Id.eq(id));
            }
            select = select.filter(found);
        }
        select
    }

    /// Whether a capsule of the team is among those meant.
    pub(super) fn matches(&self, row: &Model) -> bool {
        let state = match &self.states {
            Some(states) => states.contains(&row.state),
            None => row.state != capsule::CapsuleState::Stopped,
        };
        state
            && self.template.is_none_or(|template| template == row.template_id)
            && self.labels.0.iter().all(|(name, value)| row.labels.0.get(name) == Some(value))
            && self.search.as_ref().is_none_or(|search| {
                row.name.as_ref().is_some_and(|name| name.to_lowercase().contains(search))
                    || row.id.to_string() == *search
            })
    }
}

fn has_label(backend: DbBackend, name: &str, value: &str) -> sea_orm::sea_query::SimpleExpr {
    if backend == DbBackend::Postgres {
        Expr::cust_with_values(r#""capsules"."labels" ->> $1 = $2"#, [name.to_owned(), value.to_owned()])
    } else {
        Expr::cust_with_values(
            r#"EXISTS (SELECT 1 FROM json_each("capsules"."labels") AS "label" WHERE "label"."key" = ? AND "label"."value" = ?)"#,
            [name.to_owned(), value.to_owned()],
        )
    }
}
