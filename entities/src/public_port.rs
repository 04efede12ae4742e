//! Ports of capsules that anybody may reach.

use sea_orm::entity::prelude::*;

use crate::CapsuleId;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "public_ports")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub capsule_id: CapsuleId,
    /// From 1 to 65535.
    #[sea_orm(primary_key, auto_increment = false)]
    pub port: i32,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
