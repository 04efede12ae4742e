//! Which machine a guest sees: the requests that make it, and the paths in the jail that they name.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::api::{
    ApiError, BootSource, CacheType, Drive, EntropyDevice, Firecracker, MachineConfiguration, MmdsConfig,
    MmdsVersion, NetworkInterface, RateLimiter, TokenBucket,
};
use crate::{
    driver::MachineConfig,
    network::{GUEST_MAC, TAP},
};

/// Grows with every change of a device below: a snapshot of another layout cannot be restored.
pub const DEVICE_LAYOUT: u32 = 1;

/// Paths in every jail are the same, so that a snapshot of one is restored in any other.
pub const PROGRAM: &str = "/firecracker";
pub const ROOT_DISK: &str = "/capsule/rootfs";
pub const KERNEL: &str = "/capsule/kernel";
pub const INITRD: &str = "/capsule/initrd";
/// Of the snapshot a machine starts from.
pub const STATE: &str = "/capsule/state";
pub const MEMORY: &str = "/capsule/memory";
/// Where snapshots are written.
pub const SAVED: &str = "/capsule/saved";
/// Of sockets.
pub const RUN: &str = "/run";
pub const API_SOCKET: &str = "/run/api.sock";
pub const PAGES_SOCKET: &str = "/run/pages.sock";

const DISK: &str = "rootfs";
const INTERFACE: &str = "eth0";
/// What a guest may send each second, and how much more at first, in bytes.
const SENT_A_SECOND: u64 = 200_000_000;
const SENT_AT_FIRST: u64 = 100_000_000;

/// Asks for all of the machine but its start.
pub async fn configure(api: &Firecracker, config: MachineConfig) -> Result<(), ApiError> {
    api.machine_configuration(&MachineConfiguration {
        vcpu_count: config.vcpus,
        mem_size_mib: config.memory_mib,
        track_dirty_pages: true,
    })
    .await?;
    api.boot_source(&BootSource {
        kernel_image_path: KERNEL.into(),
        initrd_path: Some(INITRD.into()),
        boot_args: Some(KERNEL_COMMAND_LINE.to_owned()),
    })
    .await?;
    api.drive(&disk()).await?;
    api.network_interface(&interface()).await?;
    api.entropy(&EntropyDevice::default()).await?;
    api.mmds_config(&MmdsConfig {
        version: MmdsVersion::V2,
        network_interfaces: vec![INTERFACE.to_owned()],
        ipv4_address: None,
    })
    .await
}

/// Devices are found through ACPI. The rest are devices this machine does not have and tests nobody reads. What the
/// guest's kernel protects in it belongs to one capsule: what separates capsules is the machine.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 8250.nr_uarts=1 i8042.noaux \
                                   i8042.nomux i8042.dumbkbd mitigations=off random.trust_cpu=on \
                                   cryptomgr.notests raid=noautodetect init_on_alloc=0 audit=0 lsm= nowatchdog";

fn disk() -> Drive {
    Drive {
        drive_id: DISK.to_owned(),
        path_on_host: PathBuf::from(ROOT_DISK),
        // The initrd knows which disk is the root.
        is_root_device: false,
        is_read_only: false,
        // Flushes end in the host's page cache: a disk outlives its machine only in a snapshot, and that is synced
        // as a whole.
        cache_type: CacheType::Unsafe,
        rate_limiter: None,
    }
}

fn interface() -> NetworkInterface {
    let bandwidth = Some(TokenBucket::bytes_per_second(SENT_A_SECOND, SENT_AT_FIRST));
    NetworkInterface {
        iface_id: INTERFACE.to_owned(),
        host_dev_name: TAP.to_owned(),
        guest_mac: Some(GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":")),
        tx_rate_limiter: Some(RateLimiter { bandwidth, ops: None }),
        rx_rate_limiter: None,
    }
}

/// What the guest finds at the metadata address. A snapshot does not keep it.
pub fn metadata(capsule: &str, template: Option<&str>) -> Map<String, Value> {
    let mut content = Map::new();
    content.insert("capsule".to_owned(), capsule.into());
    if let Some(template) = template {
        content.insert("template".to_owned(), template.into());
    }
    content
}
