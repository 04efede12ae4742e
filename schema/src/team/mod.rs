//! Teams.

use async_graphql::{ID, Object};
use chrono::{DateTime, Utc};
use wrenn_entities::team;

/// A tenant.
pub struct Team(pub(crate) team::Model);

/// A tenant.
#[Object]
impl Team {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    async fn name(&self) -> &str {
        &self.0.name
    }

    /// Never changes, is never used again.
    async fn slug(&self) -> &str {
        &self.0.slug
    }

    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
}
