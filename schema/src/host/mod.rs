//! Hosts: who may run capsules, how they are reached, and which of them takes the next one.

mod authority;
mod client;
mod credential;
mod each;
mod mutation;
pub(crate) mod placement;

use async_graphql::{Enum, ID, Object};
use chrono::{DateTime, Utc};
use wrenn_entities::{HostId, host};

pub(crate) use self::{
    authority::Authority,
    client::{AgentClient, HostClients, answer, requested},
    credential::{authenticate, recheck},
    each::{Answers, Placed, each, only},
};
pub use self::{authority::AuthorityError, client::HostStream, mutation::HostMutation};

/// The name that a host's server certificate carries.
pub(crate) fn server_name(id: HostId) -> String {
    format!("{id}.host.wrenn.internal")
}

/// The name that the control plane's client certificate carries.
pub(crate) const CONTROL_PLANE_NAME: &str = "control-plane.wrenn.internal";

/// A machine that runs capsules.
pub struct Host(pub(crate) host::Model);

#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "host::HostStatus")]
pub enum HostStatus {
    /// Created, but no agent has registered as it yet.
    Pending,
    Online,
    /// Not heard from for 90 seconds.
    Unreachable,
}

/// A machine that runs capsules.
#[Object]
impl Host {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    async fn name(&self) -> &str {
        &self.0.name
    }

    async fn status(&self) -> HostStatus {
        self.0.status.into()
    }

    async fn arch(&self) -> &str {
        &self.0.arch
    }

    async fn cpus(&self) -> i32 {
        self.0.cpus
    }

    async fn memory_mib(&self) -> i32 {
        self.0.memory_mib
    }

    async fn memory_available_mib(&self) -> i32 {
        self.0.memory_available_mib
    }

    async fn disk_mib(&self) -> i32 {
        self.0.disk_mib
    }

    async fn disk_available_mib(&self) -> i32 {
        self.0.disk_available_mib
    }

    /// What runs its capsules, as `qemu/tcg`.
    async fn vmm(&self) -> &str {
        &self.0.vmm
    }

    /// How it makes their disks, as `reflink`.
    async fn disk_store(&self) -> &str {
        &self.0.disk_store
    }

    async fn agent_version(&self) -> &str {
        &self.0.agent_version
    }

    async fn last_heartbeat_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_heartbeat_at
    }

    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
}
