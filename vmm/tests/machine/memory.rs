//! What is in a machine's memory, and in its snapshots'.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Shutdown,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use wrenn_vmm::{
    disk::DiskView,
    driver::MemorySharing,
    memory::{BLOCK, Generations},
    snapshot::SnapshotWriter,
};

use crate::{
    Stage,
    host::{CONFIG, PATIENCE, Running},
};

/// The guest's memory, read from its VMM: its largest mapping.
pub fn live(running: &Running) -> Vec<u8> {
    let pid = running.machine.process().identity().pid;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let size = CONFIG.memory_bytes();
    let start = maps
        .lines()
        .filter_map(|line| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
            (end - start == size && line.contains(" rw-")).then_some(start)
        })
        .next()
        .expect("the VMM maps the guest's memory in one piece");
    let mut content = vec![0; size as usize];
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut base = None;
    for (index, part) in content.chunks_mut(PART).enumerate() {
        let offset = (index * PART) as u64;
        if memory.read_exact_at(part, start + offset).is_err() {
            let base = base.get_or_insert_with(|| base_of(running));
            base.read(offset / BLOCK, part.len() as u64 / BLOCK, part).unwrap();
            read_touched(&memory, start + offset, part);
        }
    }
    content
}

const PART: usize = 1 << 20;

/// What a machine was restored from.
fn base_of(running: &Running) -> Generations {
    let home = &running.home;
    let base = if home.generations().exists() {
        Generations::open(&home.generations())
    } else {
        Generations::of_flat(&home.memory(), None)
    };
    base.unwrap()
}

/// Leaves in `part` what is there of pages that were never touched: the kernel shows those of a served memory to nobody,
/// and they are what the machine was restored from.
fn read_touched(memory: &File, from: u64, part: &mut [u8]) {
    let mut at = 0;
    while at < part.len() {
        // Up to the first of these pages.
        match memory.read_at(&mut part[at..], from + at as u64) {
            Ok(read) => {
                assert_ne!(read, 0, "the VMM has ended");
                at += read;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                at += BLOCK as usize;
            }
        }
    }
}

pub fn holds(memory: &[u8], marker: &[u8]) -> bool {
    // SAFETY: both are read within their lengths. The C library's search takes a tenth of a second for what
    // one that is built without optimisation takes half a minute for.
    let found =
        unsafe { libc::memmem(memory.as_ptr().cast(), memory.len(), marker.as_ptr().cast(), marker.len()) };
    !found.is_null()
}

/// Something that is in no memory yet.
pub fn marker(name: &str) -> Vec<u8> {
    // Made up here, so that it lies in no file of the image.
    let digest = Sha256::digest(format!("{name} {:?}", Instant::now()));
    digest.iter().chain(&digest).map(|byte| byte | 1).collect()
}

/// Tells the guest something that it will remember, and waits until it has heard it.
pub async fn tell(running: &Running, marker: &[u8]) {
    let mut stream = running.wait_for_guest();
    stream.write_all(marker).unwrap();
    // The guest's daemon may have hung up already: what matters is that its memory holds the marker.
    if let Err(error) = stream.shutdown(Shutdown::Write) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotConnected, "{error}");
    }
    let begun = Instant::now();
    while !holds(&live(running), marker) {
        assert!(begun.elapsed() < PATIENCE, "the guest did not hear");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn machines_of_one_snapshot_do_not_share_what_they_write(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let before = fs::read(golden.memory()).unwrap();
    let one = host.restore("one", golden, MemorySharing::Shared).await;
    let two = host.restore("two", golden, MemorySharing::Shared).await;
    let (for_one, for_two) = (marker("one"), marker("two"));
    tell(&one, &for_one).await;
    tell(&two, &for_two).await;
    let (memory_one, memory_two) = (live(&one), live(&two));
    assert!(holds(&memory_one, &for_one) && !holds(&memory_one, &for_two));
    assert!(holds(&memory_two, &for_two) && !holds(&memory_two, &for_one));
    host.end(one).await;
    host.end(two).await;
    assert!(fs::read(golden.memory()).unwrap() == before, "the golden snapshot's memory has changed");
}

pub async fn a_snapshot_holds_exactly_what_was_in_memory(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let at = host.paths.snapshot(&"exact".parse().unwrap());
    let mut running = host.restore("exact", golden, MemorySharing::Shared).await;
    let mut told = Vec::new();
    // Each round saves what changed since the last one's snapshot.
    for round in 0..3 {
        told.push(marker(&format!("exact {round}")));
        tell(&running, &told[round]).await;
        running.machine.stop_vcpus().await.unwrap();
        let paused = host.save(&mut running, &at).await;
        let expected = live(&running);
        assert!(fs::read(paused.memory()).unwrap() == expected, "round {round}: not what was in memory");
        for marker in &told {
            assert!(holds(&expected, marker), "round {round}: an earlier life is forgotten");
        }
        host.end(running).await;
        running = host.restore("exact", &paused, MemorySharing::Own).await;
        running.wait_for_guest();
    }
    host.end(running).await;
}

pub async fn a_machine_goes_on_after_its_snapshot_was_taken(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let mut running = host.restore("onward", golden, MemorySharing::Shared).await;
    let (early, late) = (marker("early"), marker("late"));
    tell(&running, &early).await;
    let mut snapshots = Vec::new();
    for name in ["first", "second"] {
        running.machine.stop_vcpus().await.unwrap();
        snapshots.push(host.save(&mut running, &host.paths.snapshot(&name.parse().unwrap())).await);
        running.machine.resume_vcpus().await.unwrap();
        tell(&running, &late).await;
    }
    host.end(running).await;
    let [first, second] = [0, 1].map(|at: usize| fs::read(snapshots[at].memory()).unwrap());
    assert!(holds(&first, &early) && !holds(&first, &late));
    assert!(holds(&second, &early) && holds(&second, &late));

    // Two from the later one at once: a fork.
    let one = host.restore("fork-one", &snapshots[1], MemorySharing::Shared).await;
    let two = host.restore("fork-two", &snapshots[1], MemorySharing::Shared).await;
    for fork in [&one, &two] {
        fork.wait_for_guest();
        assert!(holds(&live(fork), &late));
    }
    host.end(one).await;
    host.end(two).await;
}

pub async fn a_prepared_save_is_as_exact_also_in_another_home(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let mut running = host.restore("prepared", golden, MemorySharing::Shared).await;
    for round in 0..2 {
        let at = host.paths.snapshot(&format!("prepared-{round}").parse().unwrap());
        let mut writer = SnapshotWriter::begin(&at).await.unwrap();
        running.machine.prepare_save(&mut writer).await.unwrap();
        host.store.prepare_clone(running.disk.view()).await.unwrap();
        // The guest goes on over what is prepared.
        let late = marker(&format!("prepared {round}"));
        tell(&running, &late).await;
        running.machine.stop_vcpus().await.unwrap();
        running.machine.save(&mut writer).await.unwrap();
        host.store.clone_stopped(running.disk.view(), &writer.disk_path()).await.unwrap();
        let expected = live(&running);
        running.machine.resume_vcpus().await.unwrap();
        let saved = writer.commit_unsynced().await.unwrap();
        assert!(holds(&expected, &late));
        assert!(fs::read(saved.memory()).unwrap() == expected, "round {round}: not what was in memory");
        host.driver.forget(&saved).await.unwrap();
        saved.remove().await.unwrap();

        let Running { mut machine, slot, home: before, .. } = running;
        let home = host.paths.capsule(&format!("moved-{round}").parse().unwrap());
        home.create().unwrap();
        before.move_into(&home).unwrap();
        machine.set_home(home.clone());
        let record = machine.record();
        drop(machine);
        let machine = host.driver.adopt(&record).await.unwrap();
        let disk = host.store.attach(&DiskView { path: home.disk() }).await.unwrap();
        running = Running { machine, slot, disk, home };
    }
    host.end(running).await;
}

pub async fn a_machine_outlives_the_snapshot_it_came_from(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let mut first = host.restore("orphan", golden, MemorySharing::Shared).await;
    first.machine.stop_vcpus().await.unwrap();
    let snapshot = host.save(&mut first, &host.paths.snapshot(&"short-lived".parse().unwrap())).await;
    host.end(first).await;

    let mut orphan = host.restore("orphan", &snapshot, MemorySharing::Shared).await;
    snapshot.remove().await.unwrap();
    let told = marker("orphan");
    tell(&orphan, &told).await;
    orphan.machine.stop_vcpus().await.unwrap();
    let saved = host.save(&mut orphan, &host.paths.snapshot(&"orphan".parse().unwrap())).await;
    assert!(fs::read(saved.memory()).unwrap() == live(&orphan));
    host.end(orphan).await;
}
