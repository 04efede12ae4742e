//! What capsules start from.

use sea_orm::entity::prelude::*;

use crate::{CapsuleId, HostId, TeamId, TemplateId, json::Environment};

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))", rename_all = "snake_case")]
pub enum TemplateKind {
    /// A disk.
    Image,
    /// A disk and the memory that goes with it.
    Snapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))", rename_all = "snake_case")]
pub enum TemplateState {
    /// Its host is at it; nobody can use it yet.
    Making,
    Ready,
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "templates")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: TemplateId,
    pub team_id: TeamId,
    pub name: String,
    pub kind: TemplateKind,
    pub state: TemplateState,
    /// Of a snapshot: the only host that has its files. None once they are gone.
    pub host_id: Option<HostId>,
    /// Of a snapshot: what it is a moment of.
    pub source_capsule_id: Option<CapsuleId>,
    /// Of a snapshot: what it takes on its host, without what it shares with other files.
    pub size_bytes: Option<i64>,
    /// What a capsule gets when its creator does not say otherwise.
    pub vcpus: i32,
    pub memory_mib: i32,
    pub disk_mib: i32,
    /// Who processes run as when nobody is named.
    pub default_user: String,
    #[sea_orm(column_type = "JsonBinary")]
    pub env: Environment,
    pub created_at: DateTimeUtc,
    pub deleted_at: Option<DateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
