//! Capsules: what they look like, how they are found, made, changed and watched.

pub(crate) mod create;
mod egress;
mod filter;
mod fork;
mod mutation;
pub(crate) mod operation;
pub(crate) mod port_watch;
mod query;
pub(crate) mod reach;
mod record;
pub(crate) mod revise;
pub(crate) mod rules;
pub(crate) mod settle;
mod snapshot;
pub(crate) mod state;
mod subscription;
mod timing;
mod wanted;

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, Object, SimpleObject};
use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter};
use wrenn_entities::{CapsuleId, TeamId, capsule};

pub use self::{
    egress::EgressPolicyInput,
    mutation::{CapsuleMutation, CapsulePayload, CreateCapsuleInput},
    query::CapsuleQuery,
    subscription::CapsuleSubscription,
};
use crate::{
    Error,
    access::{loaders, request_id, services},
    file::{self, FileEntry},
    host::Host,
    metrics::{self, CapsuleMetricPoint, MetricsRange},
    port::{self, Port},
    process::Process,
    scalar::Labels,
    team::Team,
    template::Template,
};

/// One microVM with its disk, network and lifecycle.
#[derive(Clone)]
pub struct Capsule(Arc<capsule::Model>);

impl From<capsule::Model> for Capsule {
    fn from(row: capsule::Model) -> Self {
        Self(Arc::new(row))
    }
}

impl From<Arc<capsule::Model>> for Capsule {
    fn from(row: Arc<capsule::Model>) -> Self {
        Self(row)
    }
}

#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(remote = "capsule::CapsuleState")]
pub enum CapsuleState {
    /// Written down; no host was chosen yet.
    Pending,
    Starting,
    Running,
    Pausing,
    /// On disk, with everything in its memory.
    Paused,
    Resuming,
    Snapshotting,
    Stopping,
    /// Gone: destroyed, or lost.
    Stopped,
    /// Its host is out of reach; it comes back when the host does.
    Missing,
    /// Cannot be used; the cause says why.
    Error,
}

/// Why a capsule is in its state.
#[derive(SimpleObject, Clone)]
pub struct CapsuleCause {
    /// Stable, as `LOST_BY_HOST`.
    pub(crate) code: String,
    pub(crate) message: String,
}

/// One microVM with its disk, network and lifecycle.
#[Object]
impl Capsule {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    async fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    async fn state(&self) -> CapsuleState {
        self.0.state.into()
    }

    /// Why it is in this state, where that needs saying.
    async fn cause(&self) -> Option<CapsuleCause> {
        let code = self.0.cause_code.clone()?;
        Some(CapsuleCause { code, message: self.0.cause_message.clone().unwrap_or_default() })
    }

    async fn template(&self, ctx: &Context<'_>) -> Result<Template, Error> {
        let template = loaders(ctx)?.template(self.0.template_id).await?;
        template.map(Template).ok_or_else(|| Error::not_found("the capsule's template is gone"))
    }

    async fn team(&self, ctx: &Context<'_>) -> Result<Team, Error> {
        let team = loaders(ctx)?.team(self.0.team_id).await?;
        team.map(Team).ok_or_else(|| Error::not_found("the capsule's team is gone"))
    }

    /// Where it runs, once that is decided.
    async fn host(&self, ctx: &Context<'_>) -> Result<Option<Host>, Error> {
        match self.0.host_id {
            Some(id) => Ok(loaders(ctx)?.host(id).await?.map(Host)),
            None => Ok(None),
        }
    }

    async fn vcpus(&self) -> i32 {
        self.0.vcpus
    }

    async fn memory_mib(&self) -> i32 {
        self.0.memory_mib
    }

    async fn disk_mib(&self) -> i32 {
        self.0.disk_mib
    }

    /// Paused after this long without activity; 0 = never.
    async fn timeout_sec(&self) -> i32 {
        self.0.timeout_sec
    }

    /// Whether a request to one of its ports lets it go on when it is paused.
    async fn auto_resume(&self) -> bool {
        self.0.auto_resume
    }

    async fn labels(&self) -> Labels {
        Labels(self.0.labels.0.clone())
    }

    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }

    async fn started_at(&self) -> Option<DateTime<Utc>> {
        self.0.started_at
    }

    /// When somebody last used it; at most about a minute behind.
    async fn last_active_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_active_at
    }

    /// The capsule that it is a fork of. That may be gone.
    async fn parent(&self, ctx: &Context<'_>) -> Result<Option<Capsule>, Error> {
        match self.0.parent_id {
            Some(id) => Ok(loaders(ctx)?.capsule(id).await?.map(Capsule::from)),
            None => Ok(None),
        }
    }

    /// What listens in it; nothing while it is not running. To look is no activity.
    #[graphql(complexity = "10 * child_complexity + 1")]
    async fn ports(&self, ctx: &Context<'_>) -> Result<Vec<Port>, Error> {
        match reach::live(&self.0) {
            Some(placed) => loaders(ctx)?.ports(placed).await,
            None => Ok(Vec::new()),
        }
    }

    /// Ports that anybody may reach, whether something listens there or not.
    async fn public_ports(&self, ctx: &Context<'_>) -> Result<Vec<i32>, Error> {
        Ok(loaders(ctx)?.public_ports(self.0.id).await?.into_iter().map(i32::from).collect())
    }

    /// Where a service on this port is reached from outside.
    async fn url(&self, ctx: &Context<'_>, port: i32) -> Result<String, Error> {
        let port = port::url::port("port", port)?;
        Ok(port::url::of_port(&services(ctx)?.config, self.0.id, port))
    }

    /// The living ones and those that exited lately; none while it is not running. To look is no activity.
    #[graphql(complexity = "10 * child_complexity + 1")]
    async fn processes(&self, ctx: &Context<'_>) -> Result<Vec<Process>, Error> {
        match reach::live(&self.0) {
            Some(placed) => loaders(ctx)?.processes(placed).await,
            None => Ok(Vec::new()),
        }
    }

    /// What is in a directory of it while it runs, `depth` levels of it. Content goes over HTTP.
    #[graphql(complexity = "50 * child_complexity + 1")]
    async fn files(
        &self,
        ctx: &Context<'_>,
        path: String,
        #[graphql(default_with = "Some(1)")] depth: Option<i32>,
    ) -> Result<Vec<FileEntry>, Error> {
        let _turn = loaders(ctx)?.turn().await;
        file::list(services(ctx)?, request_id(ctx)?, &self.0, path, depth.unwrap_or(1)).await
    }

    /// What it used, oldest point first, while it runs or is paused.
    // Many points, but they come at once and nothing stands behind one: a page of capsules may be asked for theirs.
    #[graphql(complexity = "20 * child_complexity + 1")]
    async fn metrics(
        &self,
        ctx: &Context<'_>,
        range: MetricsRange,
    ) -> Result<Vec<CapsuleMetricPoint>, Error> {
        loaders(ctx)?.metrics(metrics::measured(&self.0)?, range).await
    }
}

/// A capsule of the team. Another team's is not found, like one that is not there.
pub(crate) async fn find(
    db: &impl ConnectionTrait,
    team_id: TeamId,
    id: CapsuleId,
) -> Result<capsule::Model, Error> {
    capsule::Entity::find_by_id(id)
        .filter(capsule::Column::TeamId.eq(team_id))
        .one(db)
        .await?
        .ok_or_else(|| Error::not_found(format!("there is no capsule {id}")))
}
