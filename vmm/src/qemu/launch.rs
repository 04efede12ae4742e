//! From a request to a QEMU process: everything is opened here, as root, and given to it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
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
    driver::{DriverError, KernelImage, MachineConfig, MemorySharing},
    failure::{Doing as _, Failure, Teardown},
    network::{NetworkError, NetworkSlot, SlotNumber},
    paths::CapsulePaths,
    process::{
        cgroup::Cgroups,
        launch::{Descriptors, FIRST_DESCRIPTOR, Launch, Launched},
    },
    snapshot::Snapshot,
};

/// QEMU's last words are kept up to this many bytes; what comes after is refused to it.
const LOG_SIZE: u64 = 64 << 10;
/// Number, in every QEMU, of the file it writes its device state to: the first it is given.
pub const STATE_DESCRIPTOR: i32 = FIRST_DESCRIPTOR;
/// Number, in every QEMU, of its log.
pub const LOG_DESCRIPTOR: i32 = 2;
/// Far more than QEMU's own threads and files come to.
const MOST_THREADS: u64 = 512;
const MOST_FILES: u64 = 1024;

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
    pub fn plan(
        &self,
        config: MachineConfig,
        origin: Origin,
        disk: &AttachedDisk,
        slot: &NetworkSlot,
        home: &CapsulePaths,
    ) -> Result<Plan, DriverError> {
        let tap = slot.open_tap().map_err(|error| match error {
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
    /// Blocks for some milliseconds. On failure nothing is left but, in the home, what [`clear`] removes.
    pub fn start(self) -> Result<Started, DriverError> {
        let mut given = Descriptors::default();
        let state = memory_file(c"qemu-state", None)?;
        given.lend(state.as_fd()).doing(|| "giving the state's file")?;
        let uid = self.slot.uid();
        let (memory, record) = self.memory(uid)?;
        let memory = given.give(memory);
        let (disk, bytes, kind) = open_disk(&self.disk)?;
        let disk = GivenDisk { descriptor: given.give(disk), kind };
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
            log: log.try_clone().doing(|| "giving the log")?,
            namespace: self.namespace,
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

/// Removes what a start leaves in a home: its socket and its memory with what that is based on.
pub fn clear(home: &CapsulePaths, teardown: &mut Teardown) {
    for path in [home.qmp_socket(), home.memory()] {
        teardown.step(|| format!("removing {}", path.display()), fs::remove_file(&path));
    }
    let generations = home.generations();
    teardown.step(|| format!("removing {}", generations.display()), fs::remove_dir_all(&generations));
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(super) fn open_read(path: &Path) -> Result<File, Failure> {
    File::open(path).doing(|| format!("opening {}", path.display()))
}

/// Opens a disk for this machine alone: the lock is QEMU's, and goes with it. Answers with the size of its file too,
/// which is zero for a device.
fn open_disk(path: &Path) -> Result<(OwnedFd, u64, DiskKind), DriverError> {
    let doing = || format!("opening the disk {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    let metadata = file.metadata().doing(doing)?;
    let kind = if metadata.file_type().is_block_device() { DiskKind::Device } else { DiskKind::File };
    // The lock belongs to the open file, of which QEMU gets a duplicate before this one is closed.
    match file.try_lock() {
        Ok(()) => Ok((file.into(), metadata.size(), kind)),
        Err(TryLockError::WouldBlock) => Err(DriverError::DiskInUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(error).doing(|| format!("locking {}", path.display()))?,
    }
}

fn listen(path: &Path) -> Result<UnixListener, DriverError> {
    let doing = || format!("listening on {}", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(doing)?,
        _ => {}
    }
    Ok(UnixListener::bind(path).doing(doing)?)
}

/// A file that is nowhere on a disk; of a fixed size if one is given.
fn memory_file(name: &std::ffi::CStr, size: Option<u64>) -> Result<OwnedFd, Failure> {
    let doing = || "making a file in memory";
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).doing(doing)?;
    if let Some(size) = size {
        let file = File::from(file);
        file.set_len(size).doing(doing)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals)).doing(doing)?;
        return Ok(file.into());
    }
    Ok(file)
}
