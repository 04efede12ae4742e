//! Rows that many parents point at, read once for all of them.
//!
//! Loaders only gather what is asked at the same moment; they keep nothing, because an operation may live for days.

use std::{collections::HashMap, sync::Arc};

use async_graphql::dataloader::Loader;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use wrenn_entities::{HostId, TeamId, TemplateId, host, team, template};

use crate::{Error, Services};

/// Reads rows by their id.
pub(crate) struct Rows(pub Arc<Services>);

macro_rules! by_id {
    ($id:ty, $entity:ident) => {
        impl Loader<$id> for Rows {
            type Value = $entity::Model;
            type Error = Error;

            async fn load(&self, ids: &[$id]) -> Result<HashMap<$id, $entity::Model>, Error> {
                let rows = $entity::Entity::find()
                    .filter($entity::Column::Id.is_in(ids.iter().copied()))
                    .all(&self.0.db)
                    .await?;
                Ok(rows.into_iter().map(|row| (row.id, row)).collect())
            }
        }
    };
}

by_id!(TeamId, team);
by_id!(TemplateId, template);
by_id!(HostId, host);
