//! QEMU's `microvm`, by emulation (TCG) or with KVM.

mod base;
mod command;
mod launch;
mod machine;
mod mapping;
mod qmp;
mod sealed;
mod stall;
mod version;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub(crate) use self::machine::QemuMachine;
pub use self::qmp::QmpError;
use self::{
    command::{Accelerator, DEVICE_LAYOUT},
    launch::{Launcher, Origin},
    sealed::SealedMemories,
    version::QemuVersion,
};
use crate::{
    driver::{
        self, BootRequest, Driver, DriverError, DriverOptions, KernelImage, Machine, MachineRecord,
        RestoreRequest, VmmIdentity,
    },
    failure::{Doing as _, blocking},
    kvm::{self, KvmCheck},
    process::tool,
    snapshot::Snapshot,
    tsc,
};

const PROGRAM: &str = "qemu-system-x86_64";
/// Part of the host's memory that sealed copies of shared memory may take.
const SEALED_SHARE: u64 = 4;

/// What [`Driver::adopt`] must know of a machine besides what holds for all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuRecord {
    pub(crate) memory: MemoryRecord,
}

/// What the guest's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum MemoryRecord {
    /// The file `memory` of its home, shared with it.
    File,
    /// A private mapping of this inode, whose content is that of the file `memory` of its home.
    Private { inode: u64 },
    /// A private mapping of this inode, whose content is that of the generations in its home.
    Generations { inode: u64 },
}

/// Runs machines by QEMU.
#[derive(Debug)]
pub struct QemuDriver {
    launcher: Launcher,
    cpu_model: String,
    tsc_khz: u64,
    sealed: std::sync::Arc<SealedMemories>,
}

impl QemuDriver {
    /// Looks at the program and at the host.
    pub async fn open(options: &DriverOptions) -> Result<Self, DriverError> {
        let options = options.clone();
        blocking(move || Self::open_here(&options)).await
    }

    fn open_here(options: &DriverOptions) -> Result<Self, DriverError> {
        let program = match &options.qemu_binary {
            Some(program) => program.clone(),
            None => find_program().ok_or_else(|| {
                DriverError::NoVmm(format!("{PROGRAM} is not installed (apt-get install qemu-system-x86)"))
            })?,
        };
        let version = QemuVersion::of(&program)?;
        let accelerator = accelerator(options);
        let cpu_model = match accelerator {
            Accelerator::Tcg => accelerator.cpu().to_owned(),
            // What the guest sees is this processor.
            Accelerator::Kvm => format!("{}: {}", accelerator.cpu(), kvm::processor_model()?),
        };
        let groups = match accelerator {
            Accelerator::Tcg => Vec::new(),
            Accelerator::Kvm => vec![fs::metadata("/dev/kvm").doing(|| "looking at /dev/kvm")?.gid()],
        };
        let memory = nix::sys::sysinfo::sysinfo().doing(|| "asking for the host's memory")?.ram_total();
        Ok(Self {
            launcher: Launcher { program, version, accelerator, groups, cgroups: options.cgroups.clone() },
            cpu_model,
            tsc_khz: tsc::khz(&options.run)?,
            sealed: std::sync::Arc::new(SealedMemories::new(memory / SEALED_SHARE)),
        })
    }
}

fn accelerator(options: &DriverOptions) -> Accelerator {
    if KvmCheck::run(options.kvm).usable { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// Where the search path has it.
pub(crate) fn find_program() -> Option<PathBuf> {
    tool::find(PROGRAM)
}

/// As `qemu/tcg 7.2.22`, without a driver.
pub(crate) fn describe(program: &Path, kvm: bool) -> Result<String, DriverError> {
    let accelerator = if kvm { Accelerator::Kvm } else { Accelerator::Tcg };
    Ok(format!("qemu/{accelerator} {}", QemuVersion::of(program)?))
}

#[async_trait]
impl Driver for QemuDriver {
    fn summary(&self) -> String {
        format!("qemu/{} {}", self.launcher.accelerator, self.launcher.version)
    }

    fn identity(&self, kernel: &KernelImage) -> VmmIdentity {
        self.identity_with(kernel.version.clone())
    }

    async fn boot(&self, request: BootRequest<'_>) -> Result<Box<dyn Machine>, DriverError> {
        let BootRequest { config, kernel, disk, slot, home, deadline } = request;
        let origin = Origin::Boot { kernel: kernel.clone(), tsc_khz: self.tsc_khz };
        let identity = self.identity(kernel);
        let plan = self.launcher.plan(config, origin, disk, slot, home).await?;
        Ok(Box::new(QemuMachine::start(plan, identity, deadline).await?))
    }

    async fn restore(&self, request: RestoreRequest<'_>) -> Result<Box<dyn Machine>, DriverError> {
        let RestoreRequest { snapshot, kernel, sharing, disk, slot, home, deadline, template: _ } = request;
        let manifest = snapshot.manifest();
        let wanted = kernel.map_or_else(|| manifest.identity.kernel.clone(), |kernel| kernel.version.clone());
        let identity = self.identity_with(wanted);
        manifest.identity.check_restorable_on(&identity)?;
        let origin =
            Origin::Restore { snapshot: Box::new(snapshot.clone()), sharing, sealed: self.sealed.clone() };
        let plan = self.launcher.plan(manifest.machine, origin, disk, slot, home).await?;
        // The guest goes on with the rate it was told at its boot.
        let identity = VmmIdentity { tsc_khz: manifest.identity.tsc_khz, ..identity };
        let machine = QemuMachine::start(plan, identity, deadline).await?;
        Ok(Box::new(machine.restored_from(snapshot)))
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Box<dyn Machine>, DriverError> {
        driver::adopt(record, &self.launcher.cgroups).await
    }

    async fn forget(&self, snapshot: &Snapshot) -> Result<(), DriverError> {
        let (sealed, memory) = (self.sealed.clone(), snapshot.memory_file());
        Ok(blocking(move || sealed.forget(&memory)).await?)
    }
}

impl QemuDriver {
    fn identity_with(&self, kernel: String) -> VmmIdentity {
        VmmIdentity {
            driver: "qemu".to_owned(),
            version: self.launcher.version.to_string(),
            accelerator: self.launcher.accelerator.to_string(),
            cpu_model: self.cpu_model.clone(),
            device_layout: DEVICE_LAYOUT,
            kernel,
            tsc_khz: self.tsc_khz,
        }
    }
}
