//! Prints how long one machine takes to boot, to be saved and to be restored: medians of ten, with what they
//! consist of. `WRENN_DIR` names a directory with a guest kernel and an image; needs root. An
//! argument names the disk store: `auto`, `copy`, `dm-snapshot`, `reflink`; a second one the VMM: `qemu`, `firecracker`.

#[path = "../tests/machine/host.rs"]
mod host;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use host::{Host, Vmm};
use wrenn_vmm::{
    disk::DiskStoreChoice, driver::MemorySharing, firecracker::RestoreChoice, snapshot::SnapshotWriter,
};

const ROUNDS: usize = 10;

/// Durations of the same step, by its name.
#[derive(Default)]
struct Table(Vec<(&'static str, Vec<Duration>)>);

impl Table {
    fn add(&mut self, step: &'static str, took: Duration) {
        match self.0.iter_mut().find(|(name, _)| *name == step) {
            Some((_, all)) => all.push(took),
            None => self.0.push((step, vec![took])),
        }
    }

    async fn time<T>(&mut self, step: &'static str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let value = work.await;
        self.add(step, begun.elapsed());
        value
    }

    fn print(&mut self) {
        println!("{:<52} {:>9} {:>9} {:>9}", "ms", "least", "median", "most");
        for (step, all) in &mut self.0 {
            all.sort();
            let ms = |at: usize| all[at].as_secs_f64() * 1000.0;
            println!("{step:<52} {:>9.2} {:>9.2} {:>9.2}", ms(0), ms(all.len() / 2), ms(all.len() - 1));
        }
    }
}

#[tokio::main]
async fn main() {
    let mut table = Table::default();
    let choice = std::env::args().nth(1).map_or(Ok(DiskStoreChoice::Auto), |name| name.parse());
    let vmm = match std::env::args().nth(2).as_deref() {
        None | Some("qemu") => Vmm::qemu(),
        Some("firecracker") => Vmm::firecracker(RestoreChoice::File, None).unwrap(),
        Some(other) => panic!("the second argument is qemu or firecracker, not {other}"),
    };
    let started = Host::start(&vmm, "32000-32009", choice.expect("the argument is a disk store"));
    let host = table.time("host: file system, rules, driver", started).await;
    println!("{} ({:?}) on {}", host.driver.summary(), host.vmm.restore, host.store.kind());
    for _ in 0..3 {
        let running = table.time("boot: until vCPUs run", host.boot("boot")).await;
        let begun = Instant::now();
        running.wait_for_guest();
        table.add("boot: then until the guest accepts", begun.elapsed());
        table.time("end of a machine, slot and disk included", host.end(running)).await;
    }
    let golden = table.time("golden: boot, save, end", host.golden()).await;
    let at = host.paths.snapshot(&"paused".parse().unwrap());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let mut running = host.restore("capsule", &golden, MemorySharing::Shared).await;
        table.add("create: disk, slot, restore until vCPUs run", begun.elapsed());
        running.wait_for_guest();
        table.add("create: … until the guest accepts", begun.elapsed());

        table.time("slot made ahead, meanwhile", tokio::time::sleep(Duration::from_millis(100))).await;
        let begun = Instant::now();
        table.time("pause: stop vCPUs", running.machine.stop_vcpus()).await.unwrap();
        let mut writer = table.time("pause: begin snapshot", SnapshotWriter::begin(&at)).await.unwrap();
        let report = table.time("pause: save", running.machine.save(&mut writer)).await.unwrap();
        table.add("pause:   of which device state", report.state_took);
        table.add("pause:   of which memory", report.memory_took);
        let disk = writer.disk_path();
        let cloned = host.store.clone_frozen(running.disk.view(), &disk);
        table.time("pause: clone disk", cloned).await.unwrap();
        let paused = table.time("pause: commit (fsync)", writer.commit()).await.unwrap();
        table.add("pause: all of it", begun.elapsed());
        println!("{} KiB of memory written", report.memory_written_bytes >> 10);
        table.time("end of a machine, slot and disk included", host.end(running)).await;

        let begun = Instant::now();
        let running = host.restore("capsule", &paused, MemorySharing::Own).await;
        table.add("resume: disk, slot, restore until vCPUs run", begun.elapsed());
        running.wait_for_guest();
        table.add("resume: … until the guest accepts", begun.elapsed());
        host.end(running).await;
    }
    table.print();
    host.stop().await;
}
