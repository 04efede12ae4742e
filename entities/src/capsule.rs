//! Capsules, also those that are gone.

use sea_orm::entity::prelude::*;

use crate::{ApiKeyId, CapsuleId, HostId, TeamId, TemplateId, json::Labels};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))", rename_all = "snake_case")]
pub enum CapsuleState {
    Pending,
    Starting,
    Running,
    Pausing,
    Paused,
    Resuming,
    Snapshotting,
    Stopping,
    Stopped,
    Missing,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "capsules")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: CapsuleId,
    pub team_id: TeamId,
    pub template_id: TemplateId,
    /// Present once a host was chosen.
    pub host_id: Option<HostId>,
    /// The capsule that it is a copy of.
    pub parent_id: Option<CapsuleId>,
    /// The moment that it is a copy of: one for all copies made together.
    pub fork_id: Option<Uuid>,
    pub name: Option<String>,
    pub state: CapsuleState,
    /// Grows with every change but that of `last_active_at` and `operation_until`.
    pub generation: i64,
    pub cause_code: Option<String>,
    pub cause_message: Option<String>,
    pub vcpus: i32,
    pub memory_mib: i32,
    pub disk_mib: i32,
    /// 0: never paused for idleness.
    pub timeout_sec: i32,
    /// Whether a request to one of its ports lets it go on when it is paused.
    pub auto_resume: bool,
    #[sea_orm(column_type = "JsonBinary")]
    pub labels: Labels,
    pub created_by: Option<ApiKeyId>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub started_at: Option<DateTimeUtc>,
    /// Follows the host's own figure, at most a minute behind.
    pub last_active_at: Option<DateTimeUtc>,
    /// Until then the process that put the row into a transitional state answers for it; afterwards the
    /// reconciler does.
    pub operation_until: Option<DateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
