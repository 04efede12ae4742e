//! Keys under which clients repeat a request without repeating its effect.

use sea_orm::entity::prelude::*;

use crate::{CapsuleId, TeamId, TemplateId};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency_keys")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub team_id: TeamId,
    /// The mutation, as `createCapsule`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub operation: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// SHA-256 of the input the key was first used with.
    pub input_digest: Vec<u8>,
    /// What was made: a capsule, the first of a fork, or the capsule that `template_id` is a snapshot of.
    pub capsule_id: CapsuleId,
    pub template_id: Option<TemplateId>,
    pub created_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
