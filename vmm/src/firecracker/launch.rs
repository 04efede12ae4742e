//! From a request to a Firecracker process: its jail, and what is opened for it.
//!
//! Our own launcher makes the jail, not Firecracker's `jailer` program, because that one copies the host's whole table of
//! mounts and the program itself at every start, keeps the capabilities' bounding set, knows neither the cgroup that is
//! already there nor a descriptor it is to pass on, and leaves its directory to be removed. What confines both drivers'
//! VMMs is one and the same code. Firecracker's own system call filters are on in either case.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, chown},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    changes,
    model::{API_SOCKET, INITRD, KERNEL, MEMORY, PROGRAM, ROOT_DISK, RUN, SAVED, STATE},
};
use crate::{
    disk::AttachedDisk,
    driver::{
        DriverError, KernelImage, MachineConfig,
        disk_lock::{OpenDisk, open_disk},
    },
    failure::{Doing as _, Failure, Teardown},
    network::{NetworkError, NetworkSlot, SlotNumber},
    paths::CapsulePaths,
    process::{
        cgroup::Cgroups,
        jail::{Access, EmptyNamespace, Jail},
        launch::{Launch, Launched, MOST_FILES, MOST_THREADS},
        output::{LOG_SIZE, memory_file},
    },
};

/// What the guest's console said is kept up to this many bytes, from the first on.
const CONSOLE_SIZE: u64 = 256 << 10;
/// Numbers, in every Firecracker, of its console and its log.
pub const CONSOLE_DESCRIPTOR: i32 = 1;
pub const LOG_DESCRIPTOR: i32 = 2;
/// Where there is one, it serves page faults of users that have no privilege.
pub const USERFAULTFD: &str = "/dev/userfaultfd";

/// What is the same for all machines of a driver.
#[derive(Clone, Debug)]
pub struct Launcher {
    pub program: PathBuf,
    pub mounts: Arc<EmptyNamespace>,
    pub cgroups: Cgroups,
}

/// Where a machine comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    Boot(KernelImage),
    /// From this state, and the memory of its home.
    Mapped(PathBuf),
    /// From this state, and the memory that a page server has.
    Served(PathBuf),
}

/// What a machine is started in; it may be started several times.
#[derive(Clone, Debug)]
pub struct Place {
    pub config: MachineConfig,
    disk: PathBuf,
    pub slot: SlotNumber,
    namespace: Arc<OwnedFd>,
    pub home: CapsulePaths,
}

/// What a VMM says.
#[derive(Debug)]
pub struct Output {
    pub console: OwnedFd,
    pub log: OwnedFd,
}

impl Place {
    /// Takes from the slot what the machine needs of it. Its TAP must not be in use.
    pub async fn new(
        config: MachineConfig,
        disk: &AttachedDisk,
        slot: &NetworkSlot,
        home: &CapsulePaths,
    ) -> Result<Self, DriverError> {
        let tap = slot.open_tap().await.map_err(|error| match error {
            NetworkError::Io(failure) => failure,
            other => Failure::new("opening the TAP", std::io::Error::other(other)),
        })?;
        // Firecracker opens it itself.
        drop(tap);
        let namespace = slot.namespace().try_clone_to_owned().doing(|| "keeping a network namespace")?;
        Ok(Self {
            config,
            disk: disk.device().to_owned(),
            slot: slot.number(),
            namespace: Arc::new(namespace),
            home: home.clone(),
        })
    }

    /// The disk, if it is a device.
    pub fn device(&self) -> Option<PathBuf> {
        let found = fs::metadata(&self.disk);
        found.is_ok_and(|found| found.file_type().is_block_device()).then(|| self.disk.clone())
    }

    /// Makes what a VMM, and its page server, write to.
    pub fn prepare(&self) -> Result<(), DriverError> {
        let uid = self.slot.uid();
        for directory in [self.home.vmm(), self.home.vmm_run()] {
            let doing = || format!("making {}", directory.display());
            fs::DirBuilder::new().mode(0o700).create(&directory).doing(doing)?;
            chown(&directory, Some(uid), Some(uid)).doing(doing)?;
        }
        changes::prepare(&self.home)
    }

    /// Files for what a VMM says; they outlive it.
    pub fn output() -> Result<Output, Failure> {
        Ok(Output {
            console: memory_file(c"firecracker-console", Some(CONSOLE_SIZE))?,
            log: memory_file(c"firecracker-log", Some(LOG_SIZE))?,
        })
    }

    /// Blocks for some milliseconds. On failure nothing is left but what [`clear`](Self::clear) removes.
    pub fn start(
        &self,
        launcher: &Launcher,
        origin: &Origin,
        output: &Output,
    ) -> Result<Launched, DriverError> {
        let uid = self.slot.uid();
        // The lock is the VMM's, which never uses what it is given of the disk.
        let OpenDisk { descriptor: disk, bytes: disk_bytes, .. } = open_disk(&self.disk)?;
        let mut jail = Jail::new(launcher.mounts.clone(), uid);
        self.furnish(&mut jail, launcher, origin)?;
        let largest_file = disk_bytes.max(self.config.memory_bytes());
        let limits = [
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_NOFILE, MOST_FILES),
            (libc::RLIMIT_NPROC, MOST_THREADS),
            (libc::RLIMIT_FSIZE, largest_file),
        ];
        let given = |descriptor: &OwnedFd| descriptor.try_clone().doing(|| "giving a log");
        let launch = Launch {
            program: PROGRAM.into(),
            arguments: arguments(self.slot).map(Into::into).into(),
            descriptors: vec![disk],
            output: Some(given(&output.console)?),
            log: given(&output.log)?,
            namespace: self.namespace.try_clone().doing(|| "giving a network namespace")?,
            jail: Some(jail),
            uid,
            groups: Vec::new(),
            limits: limits.into(),
            group: launcher.cgroups.create(self.slot, &self.config)?,
        };
        Ok(launch.start()?)
    }

    fn furnish(&self, jail: &mut Jail, launcher: &Launcher, origin: &Origin) -> Result<(), Failure> {
        jail.put(&launcher.program, PROGRAM, Access::Execute)?
            .put(&self.home.vmm(), SAVED, Access::Write)?
            .put(&self.home.vmm_run(), RUN, Access::Write)?;
        for device in ["/dev/kvm", "/dev/net/tun", "/dev/urandom", USERFAULTFD] {
            if Path::new(device).exists() {
                jail.put_device(Path::new(device), device)?;
            }
        }
        self.put_disk(jail)?;
        match origin {
            Origin::Boot(kernel) => {
                jail.put(&kernel.vmlinux, KERNEL, Access::Read)?;
                jail.put(&kernel.initrd, INITRD, Access::Read)?;
            }
            Origin::Mapped(state) => {
                jail.put(state, STATE, Access::Read)?;
                jail.put(&self.home.memory(), MEMORY, Access::Read)?;
            }
            Origin::Served(state) => {
                jail.put(state, STATE, Access::Read)?;
            }
        }
        Ok(())
    }

    fn put_disk(&self, jail: &mut Jail) -> Result<(), Failure> {
        if let Some(device) = self.device() {
            jail.put_device(&device, ROOT_DISK)?;
            return Ok(());
        }
        let doing = || format!("giving the disk {} away", self.disk.display());
        let uid = self.slot.uid();
        chown(&self.disk, Some(uid), Some(uid)).doing(doing)?;
        jail.put(&self.disk, ROOT_DISK, Access::Write)?;
        Ok(())
    }

    /// Removes what attempts to start it have left. No VMM of it runs any more.
    pub fn clear(&self, cgroups: &Cgroups) -> Result<(), crate::failure::Failures> {
        clear(&self.home, self.slot, cgroups)
    }
}

/// Removes what a machine leaves when it has ended.
pub fn clear(
    home: &CapsulePaths,
    slot: SlotNumber,
    cgroups: &Cgroups,
) -> Result<(), crate::failure::Failures> {
    let mut teardown = Teardown::default();
    home.clear_machine(&mut teardown);
    take_back_disk(home, &mut teardown);
    cgroups.clear(slot, &mut teardown);
    teardown.finish()
}

/// A disk that is a file of the home is the host's again; a device was only ever the VMM's in its jail.
fn take_back_disk(home: &CapsulePaths, teardown: &mut Teardown) {
    let disk = home.disk();
    if fs::symlink_metadata(&disk).is_ok_and(|found| found.is_file()) {
        teardown.step(|| format!("taking {} back", disk.display()), chown(&disk, Some(0), Some(0)));
    }
}

fn arguments(slot: SlotNumber) -> [String; 6] {
    let id = format!("slot-{slot}");
    ["--id", &id, "--api-sock", API_SOCKET, "--level", "Error"].map(str::to_owned)
}
