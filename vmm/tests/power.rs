//! Processes that are killed, and hosts whose power fails, at every point between the steps of writing a snapshot and
//! of merging generations. What is there afterwards is the old snapshot or the new one, whole.
//!
//! A power failure is a file system that is shut down without writing what is in memory, and mounted again. Needs root,
//! loop devices, xfsprogs and e2fsprogs. `wrenn-test-host power` has a whole machine that fails: it starts this program
//! there with the jobs `pauses` and `look`, whose disks are device-mapper's.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::FileExt as _, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};
use wrenn_vmm::{
    disk::{self, DiskOptions, DiskStore, DiskStoreChoice, DiskStoreKind},
    driver::{MachineConfig, VmmIdentity},
    memory::{BLOCK, GenerationWriter, Generations, MERGE_AT, Merged, merge},
    paths::HostPaths,
    snapshot::{MemoryLayout, Snapshot, SnapshotWriter, sweep_partials},
};

/// Names the directory in which a process started by these tests does its job.
const DIRECTORY: &str = "WRENN_TEST_POWER_DIRECTORY";
const JOB: &str = "WRENN_TEST_POWER_JOB";
const MEMORY: MachineConfig = MachineConfig { vcpus: 1, memory_mib: 4 };
/// How long a file system may be in somebody else's use.
const BUSY: Duration = Duration::from_secs(10);
/// Every tenth block is written in each generation.
const WRITTEN: usize = 10;

fn main() {
    if let (Some(directory), Some(job)) = (std::env::var_os(DIRECTORY), std::env::var_os(JOB)) {
        wrenn_vmm::failpoint::set_up().unwrap();
        return block_on(work(Path::new(&directory), &job.into_string().unwrap()));
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for file_system in ["xfs", "ext4"] {
        for job in ["first", "next", "merge"] {
            let name = format!("{job}_on_{file_system}");
            trials.push(Trial::test(name, move || {
                walk(file_system, job);
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

/// What a process that will be killed does.
async fn work(directory: &Path, job: &str) {
    match job {
        "pauses" => pauses(directory).await,
        "look" => {
            let generation = found(directory).await;
            MappedDisk::open(directory).await.check(generation).await;
            println!("holds {generation}");
        }
        "first" => snapshot(directory, 1, None).await,
        "next" => snapshot(directory, 2, None).await,
        "merge" => assert_eq!(merge(&home(directory), &AtomicBool::new(false)).unwrap(), Merged::Done),
        other => panic!("no job {other}"),
    }
}

fn at(directory: &Path) -> PathBuf {
    directory.join("snapshots/cl-1")
}

fn home(directory: &Path) -> PathBuf {
    directory.join("home")
}

/// What a memory holds after `generation`.
fn content(generation: usize) -> Vec<u8> {
    let mut content = vec![0; MEMORY.memory_bytes() as usize];
    for written in 1..=generation {
        for (block, bytes) in content.chunks_mut(BLOCK as usize).enumerate() {
            if is_written(block, written) {
                bytes.fill(written as u8);
            }
        }
    }
    content
}

fn is_written(block: usize, generation: usize) -> bool {
    block % WRITTEN == generation % WRITTEN
}

/// One pause after another, each of a machine that was resumed from the one before, until the power fails.
async fn pauses(directory: &Path) {
    fs::create_dir_all(directory.join("snapshots")).unwrap();
    sweep_partials(&directory.join("snapshots")).await.unwrap();
    let disk = MappedDisk::open(directory).await;
    for generation in found(directory).await + 1.. {
        if generation > 1 {
            resume(directory).await;
        }
        snapshot(directory, generation, Some(&disk)).await;
        println!("completed {generation}");
    }
}

/// The machine's own files, in fewer generations when there are many.
async fn resume(directory: &Path) {
    let home = home(directory);
    if home.exists() {
        fs::remove_dir_all(&home).unwrap();
    }
    let paused = Snapshot::open(&at(directory)).await.unwrap().open_memory().unwrap();
    let resumed = paused.link_into(&home).unwrap();
    if resumed.count() >= MERGE_AT {
        assert_eq!(merge(&home, &AtomicBool::new(false)).unwrap(), Merged::Done);
    }
}

/// Pauses with `generation` as the last.
async fn snapshot(directory: &Path, generation: usize, disk: Option<&MappedDisk>) {
    let mut into = SnapshotWriter::begin(&at(directory)).await.unwrap();
    fs::write(into.state_path(), format!("state {generation}")).unwrap();
    match disk {
        Some(disk) => disk.pause(generation, &into.disk_path()).await,
        None => fs::write(into.disk_path(), format!("disk {generation}")).unwrap(),
    }
    let base = Generations::open(&home(directory)).or_else(|_| Generations::open(&at(directory)));
    let mut writer = match base {
        Ok(base) => GenerationWriter::after(&base, into.directory()),
        Err(_) => GenerationWriter::first(into.directory(), MEMORY.memory_bytes()),
    };
    let content = content(generation);
    for (block, bytes) in content.chunks(BLOCK as usize).enumerate() {
        if is_written(block, generation) {
            writer.write(block as u64 * BLOCK, bytes).unwrap();
        }
    }
    let layout = MemoryLayout::from(&writer.finish().unwrap());
    let identity = VmmIdentity {
        driver: "none".into(),
        version: "1".into(),
        accelerator: "none".into(),
        cpu_model: "none".into(),
        device_layout: 1,
        kernel: "none".into(),
        tsc_khz: 1,
    };
    into.saved(identity, MEMORY, layout).unwrap();
    into.commit().await.unwrap();
}

/// Does the job again and again, each time killed one point later, until it comes to its end.
fn walk(file_system: &'static str, job: &str) {
    assert!(nix::unistd::geteuid().is_root(), "mounting needs root");
    let mounted = Mounted::make(file_system);
    let directory = mounted.directory();
    for point in 1.. {
        block_on(prepare(&directory, job));
        let ended = Command::new(std::env::current_exe().unwrap())
            .env(DIRECTORY, &directory)
            .env(JOB, job)
            .env("WRENN_FAILPOINTS", format!("#{point}=kill"))
            .status()
            .unwrap();
        let done = ended.success();
        assert!(done || ended.signal() == Some(libc::SIGKILL), "{job}: {ended}");
        let killed = block_on(look(&directory, job));
        mounted.power_failure();
        let failed = block_on(look(&directory, job));
        println!(
            "{file_system}, {job}, point {point}: {killed:?} after a kill, {failed:?} after a power failure"
        );
        block_on(recover(&directory, job));
        if done {
            assert_eq!((killed, failed), (Seen::New, Seen::New), "what was completed is lost");
            assert!(point > 4, "there are more points than {point}");
            break;
        }
    }
    mounted.remove();
}

/// What was there before the job, and certainly on the disk.
async fn prepare(directory: &Path, job: &str) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
    fs::create_dir(directory.join("snapshots")).unwrap();
    match job {
        "next" => snapshot(directory, 1, None).await,
        "merge" => {
            for generation in 1..=3 {
                snapshot(directory, generation, None).await;
            }
            let memory = Snapshot::open(&at(directory)).await.unwrap().open_memory().unwrap();
            memory.link_into(&home(directory)).unwrap();
        }
        _ => {}
    }
    nix::unistd::syncfs(File::open(directory).unwrap()).unwrap();
}

#[derive(Debug, PartialEq)]
enum Seen {
    Old,
    New,
}

/// What is there is old or new, and whole.
async fn look(directory: &Path, job: &str) -> Seen {
    if job == "merge" {
        let memory = Generations::open(&home(directory)).unwrap();
        memory.verify().unwrap();
        assert!(whole(&memory) == content(3), "the memory is another one");
        assert!([1, 3].contains(&memory.count()));
        return if memory.count() == 1 { Seen::New } else { Seen::Old };
    }
    let generation = found(directory).await;
    let new = if job == "next" { 2 } else { 1 };
    assert!([new, new - 1].contains(&generation), "it is of generation {generation}");
    if generation == new { Seen::New } else { Seen::Old }
}

/// The generation of the snapshot that is there, which is whole; 0 if there is none.
async fn found(directory: &Path) -> usize {
    match Snapshot::open(&at(directory)).await {
        Ok(snapshot) => {
            snapshot.verify().await.unwrap();
            let state = fs::read_to_string(snapshot.state()).unwrap();
            let generation: usize = state.strip_prefix("state ").unwrap().parse().unwrap();
            // A mapped one is looked at by who can map it.
            if !snapshot.disk().with_extension("ext4.base").exists() {
                assert_eq!(fs::read_to_string(snapshot.disk()).unwrap(), format!("disk {generation}"));
            }
            assert!(
                whole(&snapshot.open_memory().unwrap()) == content(generation),
                "the memory is another one"
            );
            generation
        }
        Err(wrenn_vmm::snapshot::SnapshotError::Missing(_)) => 0,
        Err(error) => panic!("{error}"),
    }
}

/// The next start goes on from there, and nothing else is left.
async fn recover(directory: &Path, job: &str) {
    let names = |directory: PathBuf| {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    sweep_partials(&directory.join("snapshots")).await.unwrap();
    if job == "merge" {
        merge(&home(directory), &AtomicBool::new(false)).unwrap();
        assert_eq!(look(directory, job).await, Seen::New);
        assert_eq!(names(home(directory)).len(), 2);
        return;
    }
    work(directory, job).await;
    assert_eq!(look(directory, job).await, Seen::New);
    assert_eq!(names(directory.join("snapshots")), ["cl-1"]);
}

fn whole(memory: &Generations) -> Vec<u8> {
    let mut content = vec![1; memory.bytes() as usize];
    memory.read(0, memory.blocks(), &mut content).unwrap();
    content
}

/// The machine's disk, and what it is made of and is paused as.
struct MappedDisk {
    store: Arc<dyn DiskStore>,
    base: PathBuf,
    home: PathBuf,
    paused: PathBuf,
}

impl MappedDisk {
    /// Chunks of the disk, which each generation writes one of.
    const CHUNKS: usize = 64;
    const CHUNK: usize = 4096;

    async fn open(directory: &Path) -> Self {
        let choice = DiskStoreChoice::Only(DiskStoreKind::DmSnapshot);
        let options = DiskOptions { choice, data_size_bytes: None };
        let store = disk::prepare(&HostPaths::new(directory).unwrap(), &options).await.unwrap();
        let base = directory.join("base.ext4");
        if !base.exists() {
            File::create(&base).unwrap().set_len((Self::CHUNKS * Self::CHUNK) as u64).unwrap();
        }
        Self { store, base, home: directory.join("disk.ext4"), paused: at(directory).join("disk.ext4") }
    }

    /// A life that writes to a disk of what there was before, and ends as `to`.
    async fn pause(&self, generation: usize, to: &Path) {
        let from = if generation == 1 { &self.base } else { &self.paused };
        let view = self.store.create(from, &self.home).await.unwrap();
        let disk = self.store.attach(&view).await.unwrap();
        let device = OpenOptions::new().write(true).open(disk.device()).unwrap();
        let place = generation % Self::CHUNKS * Self::CHUNK;
        device.write_all_at(&[generation as u8; Self::CHUNK], place as u64).unwrap();
        drop(device);
        self.store.clone_frozen(disk.view(), to).await.unwrap();
        let view = self.store.detach(disk).await.unwrap();
        self.store.remove(view).await.unwrap();
    }

    /// The paused one has what was written in each generation up to this one.
    async fn check(&self, generation: usize) {
        if generation == 0 {
            return;
        }
        let view = self.store.create(&self.paused, &self.home).await.unwrap();
        let disk = self.store.attach(&view).await.unwrap();
        let shown = fs::read(disk.device()).unwrap();
        for written in generation.saturating_sub(Self::CHUNKS - 1).max(1)..=generation {
            let content = &shown[written % Self::CHUNKS * Self::CHUNK..][..Self::CHUNK];
            assert!(content.iter().all(|byte| *byte == written as u8), "the disk lacks generation {written}");
        }
        let view = self.store.detach(disk).await.unwrap();
        self.store.remove(view).await.unwrap();
    }
}

/// A file system of its own, in a file.
struct Mounted {
    directory: tempfile::TempDir,
}

/// `XFS_IOC_GOINGDOWN` of xfs_fs.h and `EXT4_IOC_SHUTDOWN` of ext4.h are the same request.
const SHUT_DOWN: libc::c_ulong = 0x8004_587d;
/// Neither the log nor anything else is written any more.
const WITHOUT_LOG: u32 = 2;

impl Mounted {
    fn make(file_system: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("wrenn-vmm-power-").tempdir_in("/var/tmp").unwrap();
        let image = directory.path().join("image");
        File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run(Command::new(format!("mkfs.{file_system}")).arg("-q").arg(&image));
        fs::create_dir(directory.path().join("mounted")).unwrap();
        let mounted = Self { directory };
        mounted.mount();
        mounted
    }

    fn directory(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    fn mount(&self) {
        let image = self.directory.path().join("image");
        run(Command::new("mount").arg("-o").arg("loop").arg(image).arg(self.directory()));
    }

    fn power_failure(&self) {
        let file = File::open(self.directory()).unwrap();
        let how = WITHOUT_LOG;
        // SAFETY: the request reads one such number, which lives through the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), SHUT_DOWN, &raw const how) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        drop(file);
        self.unmount();
        self.mount();
    }

    /// A process that another test is just starting has this one's files open until it has become its program.
    fn unmount(&self) {
        let deadline = Instant::now() + BUSY;
        let mut command = Command::new("umount");
        command.arg(self.directory());
        while Instant::now() < deadline && !command.output().unwrap().status.success() {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!self.is_mounted(), "{} is busy", self.directory().display());
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&format!(" {} ", self.directory().display()))
    }

    fn remove(self) {
        self.unmount();
        let directory = self.directory.path().to_owned();
        // Not unmounted a second time.
        std::mem::forget(self);
        fs::remove_dir_all(directory).unwrap();
    }
}

impl Drop for Mounted {
    /// After a failure.
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.directory()).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
