//! Firecracker, on hosts whose KVM is usable. Facts about it are from its published API description and documents.

pub mod api;
mod changes;
mod launch;
mod machine;
mod model;
mod pages;
mod start;
mod version;

use std::{
    env, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub(crate) use self::machine::FirecrackerMachine;
pub use self::pages::PageServerCommand;
use self::{
    launch::{Launcher, Place, USERFAULTFD},
    model::DEVICE_LAYOUT,
    start::{Starter, Way},
    version::Version,
};
use crate::{
    driver::{
        self, BootRequest, Driver, DriverError, DriverOptions, KernelImage, Machine, MachineRecord,
        RestoreRequest, VmmIdentity,
    },
    failure::blocking,
    kvm::{self, KvmCheck},
    process::jail::EmptyNamespace,
    snapshot::Snapshot,
    tsc,
    uffd::PageServerRecord,
};

/// As the search path has it.
pub const PROGRAM: &str = "firecracker";

/// How a restored machine gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreChoice {
    /// As is better for how the memory lies on the disk.
    #[default]
    Auto,
    /// A page server brings it as it is touched.
    Uffd,
    /// A flat file is mapped.
    File,
}

/// The text is no way to restore.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a way to restore: auto, uffd or file")]
pub struct InvalidRestore(String);

impl FromStr for RestoreChoice {
    type Err = InvalidRestore;

    fn from_str(text: &str) -> Result<Self, InvalidRestore> {
        match text {
            "auto" => Ok(Self::Auto),
            "uffd" => Ok(Self::Uffd),
            "file" => Ok(Self::File),
            _ => Err(InvalidRestore(text.to_owned())),
        }
    }
}

/// What [`Driver::adopt`] must know of a machine besides what holds for all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirecrackerRecord {
    /// If its memory is served.
    pub(crate) page_server: Option<PageServerRecord>,
    /// What the guest is told it was made from.
    pub(crate) template: Option<String>,
    /// The disk, if it is a device.
    pub(crate) device: Option<PathBuf>,
}

/// Runs machines by Firecracker.
#[derive(Debug)]
pub struct FirecrackerDriver {
    launcher: Launcher,
    version: Version,
    cpu_model: String,
    tsc_khz: u64,
    restore: RestoreChoice,
    page_server: Option<PageServerCommand>,
}

impl FirecrackerDriver {
    /// Looks at the program and at the host.
    pub async fn open(options: &DriverOptions) -> Result<Self, DriverError> {
        let options = options.clone();
        blocking(move || Self::open_here(options)).await
    }

    fn open_here(options: DriverOptions) -> Result<Self, DriverError> {
        let check = KvmCheck::run(options.kvm);
        if !check.usable {
            return Err(DriverError::NoVmm(format!("Firecracker needs KVM: {check}")));
        }
        let program = options.firecracker_binary.or_else(find_program).ok_or_else(|| {
            DriverError::NoVmm(format!("{PROGRAM} is not in the search path; WRENN_FIRECRACKER_BIN names it"))
        })?;
        if options.restore == RestoreChoice::Uffd && !faults_can_be_served() {
            return Err(DriverError::NoVmm(format!("page servers need {USERFAULTFD}, Linux 6.1 or later")));
        }
        let version = Version::of(&program)?;
        let mounts = Arc::new(EmptyNamespace::make()?);
        Ok(Self {
            version,
            launcher: Launcher { program, mounts, cgroups: options.cgroups },
            cpu_model: format!("host: {}", kvm::processor_model()?),
            tsc_khz: tsc::khz(&options.run)?,
            restore: options.restore,
            page_server: options.page_server,
        })
    }

    fn identity_with(&self, kernel: String) -> VmmIdentity {
        VmmIdentity {
            driver: "firecracker".to_owned(),
            version: self.version.to_string(),
            accelerator: "kvm".to_owned(),
            cpu_model: self.cpu_model.clone(),
            device_layout: DEVICE_LAYOUT,
            kernel,
            tsc_khz: self.tsc_khz,
        }
    }
}

/// Where the search path has it.
pub(crate) fn find_program() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(PROGRAM)).find(|program| program.is_file())
}

/// As `firecracker/kvm 1.16.1`, without a driver.
pub(crate) fn describe(program: &Path) -> Result<String, DriverError> {
    Ok(summary(&Version::of(program)?))
}

fn summary(version: &Version) -> String {
    format!("firecracker/kvm {version}")
}

/// Whether a user without privileges may have its kernel's page faults answered by another process.
pub(crate) fn faults_can_be_served() -> bool {
    Path::new(USERFAULTFD).exists()
        || fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "1")
}

#[async_trait]
impl Driver for FirecrackerDriver {
    fn summary(&self) -> String {
        summary(&self.version)
    }

    fn identity(&self, kernel: &KernelImage) -> VmmIdentity {
        self.identity_with(kernel.version.clone())
    }

    async fn boot(&self, request: BootRequest<'_>) -> Result<Box<dyn Machine>, DriverError> {
        let BootRequest { config, kernel, disk, slot, home, deadline } = request;
        let place = Place::new(config, disk, slot, home).await?;
        let identity = self.identity(kernel);
        let starter = Starter { launcher: &self.launcher, place, identity, template: None, deadline };
        Ok(Box::new(starter.boot(kernel).await?))
    }

    async fn restore(&self, request: RestoreRequest<'_>) -> Result<Box<dyn Machine>, DriverError> {
        // Whoever else runs from it, nobody can write to it.
        let RestoreRequest { snapshot, kernel, sharing: _, disk, slot, home, template, deadline } = request;
        let manifest = snapshot.manifest();
        let wanted = kernel.map_or_else(|| manifest.identity.kernel.clone(), |kernel| kernel.version.clone());
        let identity = self.identity_with(wanted);
        manifest.identity.check_restorable_on(&identity)?;
        let way = Way::choose(self.restore, self.page_server.as_ref(), &manifest.memory)?;
        let place = Place::new(manifest.machine, disk, slot, home).await?;
        // The guest goes on with the rate it was told at its boot.
        let identity = VmmIdentity { tsc_khz: manifest.identity.tsc_khz, ..identity };
        let starter = Starter { launcher: &self.launcher, place, identity, template, deadline };
        Ok(Box::new(starter.restore(snapshot, way).await?))
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Box<dyn Machine>, DriverError> {
        driver::adopt(record, &self.launcher.cgroups).await
    }

    async fn forget(&self, _snapshot: &Snapshot) -> Result<(), DriverError> {
        // Machines map or serve what is in their own homes.
        Ok(())
    }
}
