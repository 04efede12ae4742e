//! What every capsule of this host is made with.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use wrenn_vmm::disk::DiskStore;
use wrenn_vmm::driver::Driver;
use wrenn_vmm::network::SlotAllocator;
use wrenn_vmm::paths::HostPaths;

use super::admission::Admission;
use super::golden::Goldens;
use super::spec::Limits;
use crate::metrics::Meters;

/// Shared by all capsules; owns none of them.
pub struct Engine {
    pub paths: HostPaths,
    pub vmm: Arc<dyn Driver>,
    pub disks: Arc<dyn DiskStore>,
    pub slots: SlotAllocator,
    pub admission: Admission,
    pub goldens: Goldens,
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
