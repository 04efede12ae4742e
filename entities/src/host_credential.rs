//! Secrets that host agents show, kept as digests.

use sea_orm::entity::prelude::*;

use crate::HostId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))", rename_all = "snake_case")]
pub enum CredentialKind {
    /// Turns a new agent into the host, once.
    Registration,
    /// Shown with every heartbeat.
    Access,
    /// Exchanged for a new pair and a new certificate.
    Refresh,
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "host_credentials")]
pub struct Model {
    /// SHA-256 of the secret.
    #[sea_orm(primary_key, auto_increment = false)]
    pub digest: Vec<u8>,
    pub host_id: HostId,
    pub kind: CredentialKind,
    /// Counts the issues of one host. The first use of an issue ends all earlier ones.
    pub issue: i64,
    pub created_at: DateTimeUtc,
    pub expires_at: DateTimeUtc,
    pub first_used_at: Option<DateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
