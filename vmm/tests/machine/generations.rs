//! A host whose files cannot share blocks: memory is kept in generations there.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use wrenn_vmm::{
    disk::{DiskStoreChoice, DiskStoreKind},
    driver::{MemorySharing, VmmChoice},
    memory::{BLOCK, Generations, MERGE_AT},
    snapshot::{MemoryLayout, Snapshot},
};

use crate::{
    Stage,
    host::{CONFIG, Host, PATIENCE, Running},
    memory::{holds, live, marker, tell},
};

/// Firecracker takes a buffer that waits for a packet for written to, whether one comes or not; so many may wait.
const RECEIVE_BUFFERS: u64 = 256;

/// Enough to come to a merge, and past it.
const ROUNDS: usize = MERGE_AT + 3;

pub async fn pauses_without_cloning_write_what_changed_and_nothing_else(stage: Arc<Stage>) {
    let host = Host::start(&stage.host.vmm, "31280-31299", DiskStoreChoice::Only(DiskStoreKind::Copy)).await;
    let golden = host.golden().await;
    assert!(matches!(golden.manifest().memory, MemoryLayout::Flat { digest: Some(_), .. }));
    golden.verify().await.unwrap();
    let at = host.paths.snapshot(&"paused".parse().unwrap());
    let template = host.paths.snapshot(&"template".parse().unwrap());
    let mut told = vec![marker("generations")];
    let mut merges = 0;
    let mut running = host.restore("paused", &golden, MemorySharing::Shared).await;
    for round in 0..ROUNDS {
        tell(&running, told.last().unwrap()).await;
        running.machine.stop_vcpus().await.unwrap();
        if round == 2 {
            // What else is saved of it has nothing to do with its pauses.
            host.save(&mut running, &template).await;
        }
        let (paused, report) = host.save_with_report(&mut running, &at).await;
        let expected = live(&running);
        assert!(content(&paused) == expected, "round {round}: not what was in memory");
        for marker in &told {
            assert!(holds(&expected, marker), "round {round}: an earlier life is forgotten");
        }
        let (new, changed) = (new_bytes(&at), changed_bytes(&running));
        let written = report.memory_written_bytes;
        println!(
            "round {round}: {written} bytes written, {new} of them here alone, for {changed} changed, in {:?}, in {} files",
            report.memory_took,
            files(&at).count()
        );
        let most = changed * 11 / 10 + taken_for_changed(host.vmm.choice);
        assert!(written <= most, "round {round}: {written} bytes written for {changed} changed");
        assert!(new <= most, "round {round}: {new} bytes for {changed} changed");
        assert!(files(&at).count() <= MERGE_AT + 1, "round {round}");
        host.end(running).await;

        running = host.restore("paused", &paused, MemorySharing::Own).await;
        running.wait_for_guest();
        if paused.open_memory().unwrap().count() >= MERGE_AT {
            merged(&running).await;
            merges += 1;
        }
        told.push(marker(&format!("generations {round}")));
    }
    assert!(merges > 0, "nothing was merged");
    Snapshot::open(&at).await.unwrap().verify().await.unwrap();
    host.end(running).await;
    forks(&host, &template, &told).await;
    golden.remove().await.unwrap();
    host.stop().await;
}

/// What a VMM writes down that was not written to, in bytes.
fn taken_for_changed(vmm: VmmChoice) -> u64 {
    if vmm == VmmChoice::Firecracker { RECEIVE_BUFFERS * BLOCK } else { 0 }
}

/// Several machines from one snapshot in generations, which go on when it is removed.
async fn forks(host: &Host, template: &Path, told: &[Vec<u8>]) {
    let snapshot = Snapshot::open(template).await.unwrap();
    let before = content(&snapshot);
    let mut one = host.restore("one", &snapshot, MemorySharing::Shared).await;
    let two = host.restore("two", &snapshot, MemorySharing::Shared).await;
    snapshot.remove().await.unwrap();
    let mine = marker("one");
    tell(&one, &mine).await;
    two.wait_for_guest();
    for fork in [&one, &two] {
        let memory = live(fork);
        assert!(holds(&memory, &told[2]) && !holds(&memory, &told[3]));
        assert_eq!(holds(&memory, &mine), std::ptr::eq(fork, &one));
    }
    one.machine.stop_vcpus().await.unwrap();
    let saved = host.save(&mut one, template).await;
    assert!(content(&saved) == live(&one) && content(&saved) != before);
    host.end(one).await;
    host.end(two).await;
}

fn content(snapshot: &Snapshot) -> Vec<u8> {
    let memory = snapshot.open_memory().unwrap();
    let mut content = vec![1; memory.bytes() as usize];
    memory.read(0, memory.blocks(), &mut content).unwrap();
    content
}

/// The memory's.
fn files(at: &Path) -> impl Iterator<Item = fs::Metadata> {
    let files = fs::read_dir(at).unwrap().map(Result::unwrap);
    let files = files.filter(|file| file.file_name().to_str().unwrap().starts_with("memory"));
    files.map(|file| file.metadata().unwrap())
}

/// What lies in no other snapshot, nor in a machine's home.
fn new_bytes(at: &Path) -> u64 {
    files(at).filter(|file| file.nlink() == 1).map(|file| file.len()).sum()
}

/// Pages of the guest's memory that are no longer those of the file it was restored from.
fn changed_bytes(running: &Running) -> u64 {
    let pid = running.machine.process().identity().pid;
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut of_the_guest = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Size:"), Some(kib)) => {
                of_the_guest = kib.parse::<u64>().unwrap() << 10 == CONFIG.memory_bytes();
            }
            (Some("Anonymous:"), Some(kib)) if of_the_guest => return kib.parse::<u64>().unwrap() << 10,
            _ => {}
        }
    }
    panic!("the VMM maps the guest's memory in one piece");
}

/// Until what the machine's memory is based on is one generation.
async fn merged(running: &Running) {
    let begun = Instant::now();
    while Generations::open(&running.home.generations()).unwrap().count() > 1 {
        assert!(begun.elapsed() < PATIENCE, "it is not merged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
