//! Machines that run capsules.

use sea_orm::entity::prelude::*;

use crate::HostId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))", rename_all = "snake_case")]
pub enum HostStatus {
    /// Created, but no agent has registered as it yet.
    Pending,
    Online,
    /// Not heard from for too long.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "hosts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: HostId,
    #[sea_orm(unique)]
    pub name: String,
    pub status: HostStatus,
    /// Where its agent listens, `ip:port`.
    pub address: Option<String>,
    pub arch: String,
    pub cpus: i32,
    pub memory_mib: i32,
    pub memory_available_mib: i32,
    pub disk_mib: i32,
    pub disk_available_mib: i32,
    /// As `qemu/tcg`.
    pub vmm: String,
    /// As `reflink`.
    pub disk_store: String,
    pub agent_version: String,
    pub last_heartbeat_at: Option<DateTimeUtc>,
    pub created_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
