//! A host whose disks are mapped devices.

use std::{fs, os::unix::fs::FileTypeExt as _, path::Path, sync::Arc};

use wrenn_vmm::{
    disk::{DiskError, DiskOptions, DiskStoreChoice, DiskStoreKind, prepare},
    driver::{DriverError, MemorySharing},
    paths::HostPaths,
};

use crate::{
    Stage,
    host::{self, Host, Running},
    memory::{holds, live, marker, tell},
};

const MAPPED: DiskStoreChoice = DiskStoreChoice::Only(DiskStoreKind::DmSnapshot);

pub async fn machines_run_from_mapped_devices(stage: Arc<Stage>) {
    if is_missing().await {
        assert!(std::env::var_os("WRENN_TEST_HOST").is_none(), "no device-mapper in this kernel");
        eprintln!("DID NOT RUN: no device-mapper in this kernel; run `make test-host`");
        return;
    }
    let host = Host::start(&stage.host.vmm, "31340-31349", MAPPED).await;
    // Booted from a file, and restored from devices that show what was in it.
    let golden = host.golden().await;
    let mut one = host.restore("one", &golden, MemorySharing::Shared).await;
    let two = host.restore("two", &golden, MemorySharing::Shared).await;
    assert_ne!(one.disk.device(), two.disk.device());
    for running in [&one, &two] {
        assert!(fs::metadata(running.disk.device()).unwrap().file_type().is_block_device());
        assert!(has_open(running, running.disk.device()), "its VMM has another disk");
    }
    let parts = host.parts("three", &golden).await;
    let taken = host::Parts { disk: host.store.attach(one.disk.view()).await.unwrap(), ..parts };
    let refused = host.try_restore(&golden, MemorySharing::Shared, &taken).await.err();
    let in_use = matches!(&refused, Some(DriverError::DiskInUse(path)) if path == one.disk.device());
    assert!(in_use, "{refused:?}");
    let busy = host.store.detach(taken.disk).await.unwrap_err();
    assert!(matches!(&busy, DiskError::Io(failure) if failure.source.raw_os_error() == Some(libc::EBUSY)));
    let host::Parts { slot, home, .. } = taken;
    host.slots.release(slot).await.unwrap();
    host.store.remove(wrenn_vmm::disk::DiskView { path: home.disk() }).await.unwrap();
    home.remove().unwrap();

    // Paused and resumed: memory and disk from the same moment, on a device of its own each time.
    let told = marker("mapped");
    tell(&one, &told).await;
    let at = host.paths.snapshot(&"one".parse().unwrap());
    for _ in 0..3 {
        one.machine.stop_vcpus().await.unwrap();
        let paused = host.save(&mut one, &at).await;
        assert!(paused.manifest().disk.as_ref().is_some_and(|disk| disk.changes_bytes.is_some()));
        host.end(one).await;
        one = host.restore("one", &paused, MemorySharing::Own).await;
        one.wait_for_guest();
        assert!(holds(&live(&one), &told));
    }
    host.end(one).await;
    host.end(two).await;
    wrenn_vmm::snapshot::Snapshot::open(&at).await.unwrap().remove().await.unwrap();
    golden.remove().await.unwrap();
    assert_eq!(mapped(&host.paths), Vec::<String>::new());
    host.stop().await;
}

async fn is_missing() -> bool {
    let directory = tempfile::tempdir().unwrap();
    let paths = HostPaths::new(directory.path()).unwrap();
    let options = DiskOptions { choice: MAPPED, data_size_bytes: None };
    matches!(prepare(&paths, &options).await.err(), Some(DiskError::Unavailable(_)))
}

fn has_open(running: &Running, device: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", running.machine.process().identity().pid)).unwrap();
    let mut files = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    files.any(|file| file == device)
}

/// Devices with the mark of this directory.
fn mapped(paths: &HostPaths) -> Vec<String> {
    let mark = paths.run().file_name().unwrap().to_string_lossy().into_owned();
    let devices = fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
    let names = devices.filter_map(|device| fs::read_to_string(device.path().join("dm/name")).ok());
    names.filter(|name| name.contains(&mark)).collect()
}
