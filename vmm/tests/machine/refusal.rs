//! What is not started, and what is left then.

use std::{fs, path::Path, sync::Arc};

use wrenn_vmm::{
    driver::{DriverError, MemorySharing, VmmChoice},
    firecracker::api::ApiError,
    snapshot::Snapshot,
};

use crate::{Stage, host};

/// A copy of the golden snapshot whose manifest says something else.
async fn altered(golden: &Snapshot, at: &Path, what: &str, instead: &str) -> Snapshot {
    use sha2::{Digest as _, Sha256};

    fs::create_dir_all(at).unwrap();
    for entry in fs::read_dir(golden.directory()).unwrap() {
        let path = entry.unwrap().path();
        fs::hard_link(&path, at.join(path.file_name().unwrap())).unwrap();
    }
    let manifest = at.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let (_, body) = text.split_once('\n').unwrap();
    assert!(body.contains(what), "{body}");
    let body = body.trim_end().replace(what, instead);
    let digest: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, format!("wrenn-snapshot 1 {digest}\n{body}\n")).unwrap();
    Snapshot::open(at).await.unwrap()
}

fn nothing_is_left(parts: &host::Parts) {
    for path in parts.home.of_machine() {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

pub async fn a_snapshot_of_another_vmm_is_refused_before_anything_starts(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let at = host.paths.snapshot(&"foreign".parse().unwrap());
    let (own, other) = match host.vmm.choice {
        VmmChoice::Firecracker => ("firecracker", "qemu"),
        _ => ("qemu", "firecracker"),
    };
    let driver = |name: &str| format!("\"driver\": \"{name}\"");
    let foreign = altered(golden, &at, &driver(own), &driver(other)).await;
    let parts = host.parts("foreign", &foreign).await;
    let refused = host.try_restore(&foreign, MemorySharing::Shared, &parts).await.err();
    let Some(DriverError::Refused(mismatch)) = refused else { panic!("{refused:?}") };
    assert_eq!(mismatch.0, [format!("VMM {other} (here {own})")]);
    nothing_is_left(&parts);
    host.discard(parts).await;
    foreign.remove().await.unwrap();
}

pub async fn a_disk_or_a_slot_in_use_is_refused(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let running = host.restore("holder", golden, MemorySharing::Shared).await;
    let mut parts = host.parts("second", golden).await;

    let own = std::mem::replace(&mut parts.disk, host.store.attach(running.disk.view()).await.unwrap());
    let refused = host.try_restore(golden, MemorySharing::Shared, &parts).await.err();
    assert!(
        matches!(&refused, Some(DriverError::DiskInUse(path)) if path == running.disk.device()),
        "{refused:?}"
    );
    nothing_is_left(&parts);
    parts.disk = own;

    let host::Parts { slot, disk, home } = parts;
    let mixed = host::Parts { slot: running.slot, disk, home };
    let refused = host.try_restore(golden, MemorySharing::Shared, &mixed).await.err();
    let busy = matches!(&refused, Some(DriverError::Io(failure)) if failure.source.raw_os_error() == Some(libc::EBUSY));
    assert!(busy, "{refused:?}");
    let host::Parts { slot: held, disk, home } = mixed;
    host.discard(host::Parts { slot, disk, home }).await;

    let running = host::Running { slot: held, ..running };
    running.wait_for_guest();
    host.end(running).await;
}

pub async fn a_state_that_cannot_be_loaded_is_an_error_with_a_reason(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let at = host.paths.snapshot(&"broken".parse().unwrap());
    let broken = altered(golden, &at, "\"parent\": null", "\"parent\": \"broken\"").await;
    // After it was checked, as a failing disk would.
    let state = fs::read(broken.state()).unwrap();
    fs::remove_file(broken.state()).unwrap();
    fs::write(broken.state(), &state[..state.len() / 2]).unwrap();

    let parts = host.parts("broken", &broken).await;
    let failed = host.try_restore(&broken, MemorySharing::Shared, &parts).await.err();
    match &failed {
        Some(DriverError::Ended { stderr, .. }) => assert!(!stderr.is_empty(), "the VMM said why"),
        Some(DriverError::Firecracker { source: ApiError::Refused { fault, .. }, .. }) => {
            assert!(!fault.is_empty(), "the VMM said why");
        }
        _ => panic!("{failed:?}"),
    }
    nothing_is_left(&parts);
    host.discard(parts).await;
    broken.remove().await.unwrap();
}
