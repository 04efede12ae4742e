//! A host directory of its own for one test, with everything a machine needs, and its removal.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use wrenn_vmm::{
    disk::{self, AttachedDisk, DiskOptions, DiskStore, DiskStoreChoice, DiskView},
    driver::{
        self, BootRequest, Driver, DriverError, DriverOptions, KernelImage, Machine, MachineConfig,
        MemorySharing, RestoreRequest, SaveReport, VmmChoice,
    },
    firecracker::{PageServerCommand, RestoreChoice},
    kvm::{KvmCheck, KvmPolicy},
    network::{NetworkOptions, NetworkSlot, SlotAllocator, SlotRange},
    paths::{CapsulePaths, HostPaths},
    process::cgroup::Cgroups,
    snapshot::{Snapshot, SnapshotWriter},
};

/// Where the guest daemon, or what stands in for it, answers.
const GUEST_PORT: u16 = 49983;
/// Team and template of the built-in image that machines start from.
const MINIMAL: (&str, &str) = ("team-0000000000000000000000000", "tpl-0000000000000000000000000");
pub const CONFIG: MachineConfig = MachineConfig { vcpus: 1, memory_mib: 256 };
const DISK_MIB: u32 = 512;
/// For anything that a guest under emulation does on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Within which TCP itself has tried again several times.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(20);

/// A host with a golden disk.
pub struct Host {
    pub driver: Arc<dyn Driver>,
    pub store: Arc<dyn DiskStore>,
    pub slots: SlotAllocator,
    pub paths: HostPaths,
    kernel: KernelImage,
    directory: tempfile::TempDir,
    image: PathBuf,
    slot_range: SlotRange,
    pub vmm: Vmm,
}

/// By what machines are run.
#[derive(Clone, Debug)]
pub struct Vmm {
    pub choice: VmmChoice,
    pub restore: RestoreChoice,
    firecracker_binary: Option<PathBuf>,
    page_server: Option<PageServerCommand>,
}

impl Vmm {
    pub fn qemu() -> Self {
        Self {
            choice: VmmChoice::Qemu,
            restore: RestoreChoice::Auto,
            firecracker_binary: None,
            page_server: None,
        }
    }

    /// By the program that `WRENN_FIRECRACKER_BIN` names, on a host whose KVM is usable; why not, if not.
    pub fn firecracker(
        restore: RestoreChoice,
        page_server: Option<PageServerCommand>,
    ) -> Result<Self, String> {
        let program = std::env::var_os("WRENN_FIRECRACKER_BIN").ok_or("WRENN_FIRECRACKER_BIN is not set")?;
        let check = KvmCheck::run(kvm_policy());
        if !check.usable {
            return Err(format!("KVM is not usable: {check}"));
        }
        let choice = VmmChoice::Firecracker;
        Ok(Self { choice, restore, firecracker_binary: Some(program.into()), page_server })
    }

    fn options(&self, paths: &HostPaths) -> DriverOptions {
        DriverOptions {
            vmm: self.choice,
            kvm: kvm_policy(),
            qemu_binary: None,
            firecracker_binary: self.firecracker_binary.clone(),
            restore: self.restore,
            page_server: self.page_server.clone(),
            run: paths.run().to_owned(),
            cgroups: Cgroups::none(),
        }
    }
}

fn kvm_policy() -> KvmPolicy {
    let policy = std::env::var("WRENN_KVM").map(|policy| policy.parse().expect("WRENN_KVM is a policy"));
    policy.unwrap_or_default()
}

/// What a machine stands on.
pub struct Parts {
    pub slot: NetworkSlot,
    pub disk: AttachedDisk,
    pub home: CapsulePaths,
}

/// A running machine with what belongs to it.
pub struct Running {
    pub machine: Box<dyn Machine>,
    pub slot: NetworkSlot,
    pub disk: AttachedDisk,
    pub home: CapsulePaths,
}

/// The directory with kernel and image that these tests need.
fn prepared() -> HostPaths {
    let directory = std::env::var_os("WRENN_DIR").unwrap_or_else(|| {
        panic!("WRENN_DIR must name a directory with kernels/ and images/: real machines are tested here")
    });
    assert!(nix::unistd::geteuid().is_root(), "real machines need root: namespaces, loop devices, users");
    HostPaths::new(directory).unwrap()
}

impl Host {
    /// `slots` must not be used by anything else on the machine.
    pub async fn start(vmm: &Vmm, slots: &str, choice: DiskStoreChoice) -> Self {
        let prepared = prepared();
        end_strays(&slots.parse().unwrap());
        let kernel = prepared.current_kernel().expect("WRENN_DIR must hold a guest kernel");
        let image = prepared.image(&MINIMAL.0.parse().unwrap(), &MINIMAL.1.parse().unwrap());
        assert!(image.is_file(), "WRENN_DIR must hold {}", image.display());
        let directory = tempfile::Builder::new().prefix("wrenn-vmm-").tempdir_in("/var/tmp").unwrap();
        let paths = HostPaths::new(directory.path()).unwrap();
        let options = DiskOptions { choice, data_size_bytes: Some(8 << 30) };
        let store = disk::prepare(&paths, &options).await.unwrap();
        paths.create_all().unwrap();
        let slot_range: SlotRange = slots.parse().unwrap();
        let options = NetworkOptions { slots: slot_range, pool: 1, name_servers: Vec::new() };
        let slots = SlotAllocator::start(options, &Default::default()).await.unwrap();
        let driver = driver::open(&vmm.options(&paths)).await.unwrap();
        Self { driver, store, slots, paths, kernel, directory, image, slot_range, vmm: vmm.clone() }
    }

    /// Removes everything, and checks that it could.
    pub async fn stop(self) {
        self.slots.shutdown().await.unwrap();
        assert_eq!(std::fs::read_dir(self.paths.capsules()).unwrap().count(), 0, "homes are left");
        assert_eq!(leftovers(&self.slot_range), Vec::<String>::new());
        disk::unmount(&self.paths).await.unwrap();
        std::fs::remove_dir_all(self.paths.run()).unwrap();
        self.directory.close().unwrap();
    }

    pub fn home(&self, name: &str) -> CapsulePaths {
        let home = self.paths.capsule(&name.parse().unwrap());
        home.create().unwrap();
        home
    }

    pub async fn boot(&self, name: &str) -> Running {
        let home = self.home(name);
        let disk = home.disk();
        self.install(&disk).await;
        self.boot_from(disk, home).await
    }

    /// Makes a disk of the image.
    pub async fn install(&self, disk: &Path) {
        disk::install_image(&self.image, disk).await.unwrap();
        disk::extend(disk, DISK_MIB).await.unwrap();
    }

    /// `disk` may lie anywhere.
    pub async fn boot_from(&self, disk: PathBuf, home: CapsulePaths) -> Running {
        let disk = self.store.attach(&DiskView { path: disk }).await.unwrap();
        let slot = self.slots.acquire().await.unwrap();
        let request = BootRequest {
            config: CONFIG,
            kernel: &self.kernel,
            disk: &disk,
            slot: &slot,
            home: &home,
            deadline: PATIENCE,
        };
        let machine = self.driver.boot(request).await.unwrap();
        Running { machine, slot, disk, home }
    }

    pub async fn restore(&self, name: &str, snapshot: &Snapshot, sharing: MemorySharing) -> Running {
        let parts = self.parts(name, snapshot).await;
        let machine = self.try_restore(snapshot, sharing, &parts).await.unwrap();
        let Parts { slot, disk, home } = parts;
        Running { machine, slot, disk, home }
    }

    /// All that a machine needs, for one that is to start from `snapshot`.
    pub async fn parts(&self, name: &str, snapshot: &Snapshot) -> Parts {
        let home = self.home(name);
        let view = self.store.create(&snapshot.disk(), &home.disk()).await.unwrap();
        let disk = self.store.attach(&view).await.unwrap();
        Parts { slot: self.slots.acquire().await.unwrap(), disk, home }
    }

    pub async fn try_restore(
        &self,
        snapshot: &Snapshot,
        sharing: MemorySharing,
        parts: &Parts,
    ) -> Result<Box<dyn Machine>, DriverError> {
        let request = RestoreRequest {
            snapshot,
            kernel: Some(&self.kernel),
            sharing,
            disk: &parts.disk,
            slot: &parts.slot,
            home: &parts.home,
            template: Some("minimal"),
            deadline: PATIENCE,
        };
        self.driver.restore(request).await
    }

    /// Boots one, waits for its guest, and leaves a snapshot of it.
    pub async fn golden(&self) -> Snapshot {
        let mut running = self.boot("golden").await;
        running.wait_for_guest();
        let at = self.paths.golden_root().join("minimal");
        running.machine.stop_vcpus().await.unwrap();
        let snapshot = self.save(&mut running, &at).await;
        self.end(running).await;
        snapshot
    }

    /// Its vCPUs must be stopped.
    pub async fn save(&self, running: &mut Running, at: &Path) -> Snapshot {
        self.save_with_report(running, at).await.0
    }

    pub async fn save_with_report(&self, running: &mut Running, at: &Path) -> (Snapshot, SaveReport) {
        let mut writer = SnapshotWriter::begin(at).await.unwrap();
        let report = running.machine.save(&mut writer).await.unwrap();
        self.store.clone_stopped(running.disk.view(), &writer.disk_path()).await.unwrap();
        (writer.commit().await.unwrap(), report)
    }

    pub async fn end(&self, running: Running) {
        let Running { machine, slot, disk, home } = running;
        machine.terminate().await.unwrap();
        self.discard(Parts { slot, disk, home }).await;
    }

    pub async fn discard(&self, parts: Parts) {
        let Parts { slot, disk, home } = parts;
        self.slots.release(slot).await.unwrap();
        let view = self.store.detach(disk).await.unwrap();
        self.store.remove(view).await.unwrap();
        home.remove().unwrap();
    }
}

/// Namespaces, links and VMMs of these slots.
fn leftovers(slots: &SlotRange) -> Vec<String> {
    let names = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let mut left = Vec::new();
    for slot in slots.iter() {
        left.extend(names("/run/netns").into_iter().filter(|name| *name == slot.namespace()));
        left.extend(names("/sys/class/net").into_iter().filter(|name| *name == slot.host_veth()));
    }
    left.extend(processes(slots).map(|pid| format!("process {pid}")));
    left
}

/// Of the users of these slots.
fn processes(slots: &SlotRange) -> impl Iterator<Item = i32> {
    let slots = *slots;
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let owner = entry.metadata().ok()?.uid();
        slots.iter().any(|slot| slot.uid() == owner).then_some(pid)
    })
}

/// VMMs that a failed run of these tests left.
fn end_strays(slots: &SlotRange) {
    for pid in processes(slots) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

impl Running {
    pub fn address(&self) -> SocketAddr {
        (self.slot.guest_address(), GUEST_PORT).into()
    }

    /// Until the guest accepts a connection.
    pub fn wait_for_guest(&self) -> TcpStream {
        let begun = Instant::now();
        // The first packets may go nowhere; a new attempt is sooner than TCP's own.
        let mut attempt = Duration::from_millis(200);
        loop {
            match TcpStream::connect_timeout(&self.address(), attempt) {
                Ok(stream) => return stream,
                Err(error) if begun.elapsed() > PATIENCE => {
                    let (exit, said) = (self.machine.process().has_exited(), self.machine.last_words());
                    panic!("the guest does not answer: {error}; its VMM's end: {exit:?}; it said: {said}")
                }
                // A guest that always answers an attempt which was just given up would never be heard.
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    attempt = LONGEST_ATTEMPT.min(attempt * 2);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}
