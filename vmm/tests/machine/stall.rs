//! A host that has no room for what a guest writes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use wrenn_vmm::{
    disk,
    driver::{MachineRecord, MemorySharing},
    snapshot::SnapshotWriter,
};

use crate::{
    Stage,
    host::{PATIENCE, Running},
    memory::live,
};

/// What the guest writes, and what there is room for.
const FLOOD: usize = 64 << 20;
const ROOM: u64 = 24 << 20;
/// Several attempts at letting a guest go on.
const WHILE: Duration = Duration::from_secs(4);

/// In place of the guest's daemon: writes, and says what is on its disk then.
const WRITER: &str = "#!/bin/bash
yes wrenn | head -c FLOOD > /flood
sync
echo 3 > /proc/sys/vm/drop_caches
sha256sum /flood > /dev/console
exec sleep infinity
";

pub async fn a_machine_goes_on_when_there_is_room_again(stage: Arc<Stage>) {
    let (store, mut running) = stalled(&stage, "stalled").await;
    let (written, begun) = (room_taken(&store.disk()), Instant::now());
    while begun.elapsed() < WHILE {
        // An attempt that only later comes to nothing counts as one that did not.
        let _early = timeout(WHILE.saturating_sub(begun.elapsed()), running.machine.outlast_stall()).await;
        until_stalled(&mut running).await;
    }
    assert_eq!(room_taken(&store.disk()), written, "it went on without room");

    let Running { machine, slot, disk, home } = running;
    let written = serde_json::to_string(&machine.record()).unwrap();
    drop(machine);
    let record: MachineRecord = serde_json::from_str(&written).unwrap();
    let machine = stage.host.driver.adopt(&record).await.unwrap();
    let mut running = Running { machine, slot, disk, home };
    until_stalled(&mut running).await;

    store.make_room();
    let stood = timeout(PATIENCE, running.machine.outlast_stall()).await.expect("it goes on");
    assert!(!stood.is_zero());
    assert!(!running.machine.is_stalled());
    says_what_it_wrote(&mut running).await;
    stage.host.end(running).await;
}

pub async fn a_machine_that_is_stopped_in_a_stall_stays_stopped_and_can_be_saved(stage: Arc<Stage>) {
    let (store, mut running) = stalled(&stage, "stopped").await;
    running.machine.stop_vcpus().await.unwrap();
    store.make_room();
    let (disk, memory) = (room_taken(running.disk.device()), live(&running));
    let let_go = timeout(WHILE, running.machine.outlast_stall()).await;
    assert!(let_go.is_err(), "it was let go on: {let_go:?}");
    assert_eq!(room_taken(running.disk.device()), disk, "it writes");
    assert!(live(&running) == memory, "it runs");

    // What was not written is, by who runs on from there.
    let mut writer =
        SnapshotWriter::begin(&stage.host.paths.snapshot(&"stopped".parse().unwrap())).await.unwrap();
    running.machine.save(&mut writer).await.unwrap();
    disk::install_image(running.disk.device(), &writer.disk_path()).await.unwrap();
    let snapshot = writer.commit().await.unwrap();
    let mut again = stage.host.restore("again", &snapshot, MemorySharing::Own).await;
    says_what_it_wrote(&mut again).await;
    stage.host.end(again).await;
    snapshot.remove().await.unwrap();

    // And by the machine itself.
    running.machine.resume_vcpus().await.unwrap();
    says_what_it_wrote(&mut running).await;
    stage.host.end(running).await;
}

/// A machine whose guest has written all that there is room for, and wants to write more.
async fn stalled(stage: &Stage, name: &str) -> (SmallStore, Running) {
    let store = SmallStore::mount();
    let home = stage.host.home(name);
    let disk = store.disk();
    stage.host.install(&disk).await;
    replace_daemon(&disk);
    store.resize(room_taken(&disk) + ROOM);
    let mut running = stage.host.boot_from(disk, home).await;
    until_stalled(&mut running).await;
    (store, running)
}

async fn until_stalled(running: &mut Running) {
    let begun = Instant::now();
    while !running.machine.is_stalled() {
        assert!(begun.elapsed() < PATIENCE, "there was room for everything");
        let _early = timeout(Duration::from_millis(100), running.machine.outlast_stall()).await;
    }
}

/// Until the guest has read from its disk what it has written there.
async fn says_what_it_wrote(running: &mut Running) {
    let flood: Vec<u8> = b"wrenn\n".iter().copied().cycle().take(FLOOD).collect();
    let expected: String = Sha256::digest(flood).iter().map(|byte| format!("{byte:02x}")).collect();
    let (begun, mut said) = (Instant::now(), String::new());
    while !said.contains(&expected) {
        said.push_str(&running.machine.console().await.unwrap());
        assert!(!said.contains("/flood") || said.contains(&expected), "something else was written: {said}");
        assert!(begun.elapsed() < PATIENCE, "the guest did not come to an end; it said: {said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// On the host, in bytes.
fn room_taken(disk: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(disk).unwrap().blocks() * 512
}

fn replace_daemon(disk: &Path) {
    const DAEMON: &str = "/usr/local/bin/envd";
    let writer = tempfile::NamedTempFile::new().unwrap();
    fs::write(writer.path(), WRITER.replace("FLOOD", &FLOOD.to_string())).unwrap();
    let written = format!("write {} {DAEMON}", writer.path().display());
    for command in [&format!("rm {DAEMON}"), &written, &format!("sif {DAEMON} mode 0100755")] {
        let output = Command::new("debugfs").args(["-w", "-R", command]).arg(disk).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// A file system of its own, which holds one disk and ends with the test.
struct SmallStore {
    directory: tempfile::TempDir,
}

impl SmallStore {
    fn mount() -> Self {
        let directory = tempfile::Builder::new().prefix("wrenn-vmm-small-").tempdir_in("/var/tmp").unwrap();
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self { directory }
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("disk.ext4")
    }

    fn resize(&self, bytes: u64) {
        let size = format!("size={bytes}");
        mount(None::<&str>, self.directory.path(), None::<&str>, MsFlags::MS_REMOUNT, Some(size.as_str()))
            .unwrap();
    }

    fn make_room(&self) {
        self.resize(1 << 30);
    }
}

impl Drop for SmallStore {
    fn drop(&mut self) {
        // Also of a test that has failed, whose machine has the disk open.
        let _gone = umount2(self.directory.path(), MntFlags::MNT_DETACH);
    }
}
