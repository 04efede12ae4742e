//! What every capsule of this host is made with.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use wrenn_vmm::disk::DiskStore;
use wrenn_vmm::driver::Driver;
use wrenn_vmm::network::SlotAllocator;
use wrenn_vmm::paths::HostPaths;

use super::admission::{Admission, Promise};
use super::error::CapsuleError;
use super::golden::Goldens;
use super::pool::WarmPool;
use super::spec::Limits;
use super::template::TemplateTurns;
use crate::metrics::Meters;

/// Shared by all capsules; owns none of them.
pub struct Engine {
    pub paths: HostPaths,
    pub vmm: Arc<dyn Driver>,
    pub disks: Arc<dyn DiskStore>,
    pub slots: SlotAllocator,
    pub admission: Admission,
    pub goldens: Goldens,
    /// MiB of disk that golden snapshots may take.
    pub golden_budget_mib: u64,
    pub pool: WarmPool,
    pub template_turns: TemplateTurns,
    pub limits: Limits,
    pub meters: Arc<Meters>,
    /// Given to every guest.
    pub name_servers: Vec<Ipv4Addr>,
    /// How long a template may take to boot.
    pub golden_timeout: Duration,
    /// How long a guest may take to answer after a restore or an adoption.
    pub grace: Duration,
    /// Work that outlives the requests that started it.
    pub tasks: TaskTracker,
}

impl Engine {
    /// Room for so many lives with this much memory each, and for what they will at once take of the disk; what was made
    /// ahead gives way to them.
    pub async fn room(&self, lives: u32, memory_mib: u32, disk_mib: u64) -> Result<Promise, CapsuleError> {
        loop {
            let error = match self.admission.admit(lives, memory_mib, disk_mib) {
                Err(error @ CapsuleError::Exhausted { .. }) => error,
                outcome => return outcome,
            };
            let Some(member) = self.pool.give_up() else { return Err(error) };
            member.discard(self).await;
        }
    }
}
