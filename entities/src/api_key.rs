//! API keys. The secret itself is nowhere, only its digest.

use sea_orm::entity::prelude::*;

use crate::{ApiKeyId, TeamId, UserId};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: ApiKeyId,
    pub team_id: TeamId,
    pub name: String,
    /// The first characters of the secret, for people to tell keys apart.
    pub prefix: String,
    /// SHA-256 of the secret.
    #[sea_orm(unique)]
    pub digest: Vec<u8>,
    /// May be gone: the key is still listed.
    pub created_by: Option<UserId>,
    pub created_at: DateTimeUtc,
    /// Written at most once a minute.
    pub last_used_at: Option<DateTimeUtc>,
    pub expires_at: Option<DateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
