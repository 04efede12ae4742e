//! From a request to a QEMU process: everything is opened here, as root, and given to it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::{OpenOptionsExt as _, fchown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    MemoryRecord,
    base::Base,
    command::{Accelerator, DiskKind, Given, GivenDisk, Start, arguments},
    sealed::SealedMemories,
    version::QemuVersion,
};
use crate::{
    disk::AttachedDisk,
    driver::{
        DriverError, KernelImage, MachineConfig, MemorySharing,
        disk_lock::{OpenDisk, open_disk},
    },
    failure::{Doing as _, Failure},
    network::{NetworkError, NetworkSlot, SlotNumber},
    paths::CapsulePaths,
    process::{
        cgroup::Cgroups,
        launch::{Descriptors, FIRST_DESCRIPTOR, Launch, Launched, MOST_FILES, MOST_THREADS},
        output::{LOG_SIZE, memory_file},
    },
    snapshot::Snapshot,
};

/// Number, in every QEMU, of the file it writes its device state to: the first it is given.
pub const STATE_DESCRIPTOR: i32 = FIRST_DESCRIPTOR;
/// Number, in every QEMU, of its log.
pub const LOG_DESCRIPTOR: i32 = 2;

/// What is the same for all machines of a driver.
#[derive(Clone, Debug)]
pub struct Launcher {
    pub program: PathBuf,
    pub version: QemuVersion,
    pub accelerator: Accelerator,
    pub groups: Vec<u32>,
    pub cgroups: Cgroups,
}

/// Where a machine comes from.
pub enum Origin {
    Boot { kernel: KernelImage, tsc_khz: u64 },
    Restore { snapshot: Box<Snapshot>, sharing: MemorySharing, sealed: Arc<SealedMemories> },
}

/// A machine that is about to be started.
pub struct Plan {
    pub launcher: Launcher,
    pub config: MachineConfig,
    origin: Origin,
    disk: PathBuf,
    pub slot: SlotNumber,
    namespace: OwnedFd,
    tap: OwnedFd,
    pub home: CapsulePaths,
}

/// What a started QEMU is known by.
pub struct Started {
    pub process: Launched,
    pub memory: MemoryRecord,
    pub log: OwnedFd,
    pub state: OwnedFd,
}

impl Launcher {
    /// Takes from the slot what the machine needs of it.
    pub async fn plan(
        &self,
        config: MachineConfig,
        origin: Origin,
        disk: &AttachedDisk,
        slot: &NetworkSlot,
        home: &CapsulePaths,
    ) -> Result<Plan, DriverError> {
        let tap = slot.open_tap().await.map_err(|error| match error {
            NetworkError::Io(failure) => failure.into(),
            other => DriverError::Io(Failure::new("opening the TAP", io::Error::other(other))),
        })?;
        let namespace = slot.namespace().try_clone_to_owned();
        Ok(Plan {
            launcher: self.clone(),
            config,
            origin,
            disk: disk.device().to_owned(),
            slot: slot.number(),
            namespace: namespace.doing(|| "keeping a network namespace")?,
            tap,
            home: home.clone(),
        })
    }
}

impl Plan {
    /// Blocks for some milliseconds. On failure nothing is left but, in the home, what a machine makes there.
    pub fn start(self) -> Result<Started, DriverError> {
        let mut given = Descriptors::default();
        let state = memory_file(c"qemu-state", None)?;
        given.lend(state.as_fd()).doing(|| "giving the state's file")?;
        let uid = self.slot.uid();
        let (memory, record) = self.memory(uid)?;
        let memory = given.give(memory);
        let OpenDisk { descriptor, bytes, is_device } = open_disk(&self.disk)?;
        let kind = if is_device { DiskKind::Device } else { DiskKind::File };
        let disk = GivenDisk { descriptor: given.give(descriptor), kind };
        let tap = given.give(self.tap);
        let monitor = given.give(listen(&self.home.qmp_socket())?);
        let start = match &self.origin {
            Origin::Boot { kernel, tsc_khz } => Start::Boot {
                kernel: given.give(open_read(&kernel.vmlinux)?),
                initrd: given.give(open_read(&kernel.initrd)?),
                tsc_khz: *tsc_khz,
            },
            Origin::Restore { snapshot, .. } => {
                Start::Restore { state: given.give(open_read(&snapshot.state())?) }
            }
        };
        let numbers = Given { memory, disk, tap, monitor, start };
        let log = memory_file(c"qemu-log", Some(LOG_SIZE))?;
        let launcher = self.launcher;
        let largest_file = bytes.max(self.config.memory_bytes());
        let limits = [
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_NOFILE, MOST_FILES),
            (libc::RLIMIT_NPROC, MOST_THREADS),
            (libc::RLIMIT_FSIZE, largest_file),
        ];
        let group = launcher.cgroups.create(self.slot, &self.config)?;
        let launch = Launch {
            group,
            arguments: arguments(launcher.version, launcher.accelerator, self.config, &numbers),
            program: launcher.program,
            descriptors: given.into_inner(),
            output: None,
            log: log.try_clone().doing(|| "giving the log")?,
            namespace: self.namespace,
            jail: None,
            uid,
            groups: launcher.groups,
            limits: limits.into(),
        };
        let process = launch.start()?;
        Ok(Started { process, memory: record, log, state })
    }

    /// Opens what becomes the machine's memory, and leaves the file with its content in the home.
    fn memory(&self, uid: u32) -> Result<(OwnedFd, MemoryRecord), DriverError> {
        let own = self.home.memory();
        match &self.origin {
            Origin::Boot { .. } => {
                let doing = || format!("making {}", own.display());
                let file = create_new(&own).doing(doing)?;
                file.set_len(self.config.memory_bytes()).doing(doing)?;
                fchown(&file, Some(uid), Some(uid)).doing(doing)?;
                Ok((file.into(), MemoryRecord::File))
            }
            Origin::Restore { snapshot, sharing, sealed } => {
                let base =
                    Base { launcher: &self.launcher, home: &self.home, sharing: *sharing, sealed, uid };
                base.prepare(snapshot)
            }
        }
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(super) fn open_read(path: &Path) -> Result<File, Failure> {
    File::open(path).doing(|| format!("opening {}", path.display()))
}

fn listen(path: &Path) -> Result<UnixListener, DriverError> {
    let doing = || format!("listening on {}", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(doing)?,
        _ => {}
    }
    Ok(UnixListener::bind(path).doing(doing)?)
}
