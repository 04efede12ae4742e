//! The guest kernel: an uncompressed `vmlinux` and the initramfs with the drivers it needs.

pub mod bzimage;
mod cpio;
mod modules;
mod package;

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use self::package::Package;
use self::{cpio::Archive, modules::Module};
use crate::{
    digest,
    error::{At, Error, Result},
    layout::Layout,
    manifest,
    progress::step,
    publish::Staged,
};

/// Goes into the inputs' digest: change it when the same inputs are to give another result.
const RECIPE: &str = "2";
/// Where the guest's init looks for the modules and their order. `wrenn-init` has the same names.
const MODULES: &str = "modules";
const MODULE_LIST: &str = "modules/order";

/// What a capsule's devices are: all virtio, found on the memory bus.
const DRIVERS: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng"];
/// With which envd ends connections that a restored guest only believes to have (`envd/src/sock_diag.rs`).
const SOCK_DIAG: &str = "tcp_diag";

/// `kernel.json`.
#[derive(Serialize, Deserialize)]
pub struct Manifest {
    /// The distribution's, and the name of the directory.
    pub version: String,
    /// What the kernel calls itself (`uname -r`).
    pub release: String,
    /// Of everything the files were made from.
    pub inputs: String,
    pub vmlinux_sha256: String,
    pub initrd_sha256: String,
}

pub const MANIFEST: &str = "kernel.json";

/// Makes the kernel's directory if it is not there as its inputs want it; its path.
pub fn make(layout: &Layout, deb: Option<&Path>, init: &Path) -> Result<PathBuf> {
    let package = match deb {
        Some(deb) => Package::given(deb)?,
        None => Package::newest()?,
    };
    let inputs = digest::Inputs::default()
        .with("recipe", RECIPE)
        .with("package", &package.identity()?)
        .with("init", &digest::of_file(init)?)
        .key();
    let destination = layout.kernels().join(package.version());
    if read_manifest(&destination)?.is_some_and(|made| made.inputs == inputs) {
        eprintln!("kernel {} is up to date", package.version());
        return Ok(destination);
    }
    eprintln!("kernel {}", package.version());
    let unpacked = Unpacked::from(&package, layout)?;
    let staged = Staged::new(&destination)?;
    let vmlinux = staged.path().join("vmlinux");
    unpacked.write_vmlinux(&vmlinux)?;
    let initrd = staged.path().join("initrd.cpio");
    let modules: Vec<_> = DRIVERS.into_iter().chain([SOCK_DIAG]).collect();
    unpacked.write_initramfs(&initrd, init, &modules)?;
    let manifest = Manifest {
        version: package.version().to_owned(),
        release: unpacked.release,
        inputs,
        vmlinux_sha256: digest::of_file(&vmlinux)?,
        initrd_sha256: digest::of_file(&initrd)?,
    };
    manifest::write(&staged.path().join(MANIFEST), &manifest)?;
    staged.publish()
}

/// None if there is none.
pub fn read_manifest(kernel: &Path) -> Result<Option<Manifest>> {
    manifest::read(&kernel.join(MANIFEST))
}

/// The files of a kernel package, for as long as something is made of them.
pub struct Unpacked {
    dir: TempDir,
    /// What the kernel calls itself (`uname -r`).
    pub release: String,
}

impl Unpacked {
    /// Downloads the package unless that was done before.
    pub fn from(package: &Package, layout: &Layout) -> Result<Self> {
        let deb = step("kernel package", || package.fetch(&layout.cache().join("kernel")))?;
        let dir = tempfile::tempdir_in(layout.cache()).at("make a directory in", layout.cache())?;
        step("unpack the kernel", || package::unpack(&deb, dir.path()))?;
        let release = release(&deb, dir.path())?;
        Ok(Self { dir, release })
    }

    /// `lib/modules/<release>`.
    pub fn modules(&self) -> PathBuf {
        self.dir.path().join("lib/modules").join(&self.release)
    }

    pub fn write_vmlinux(&self, to: &Path) -> Result<()> {
        step("vmlinux", || {
            let path = self.dir.path().join("boot").join(format!("vmlinuz-{}", self.release));
            let compressed = fs::read(&path).at("read", &path)?;
            let kernel = bzimage::extract(&compressed).map_err(|source| Error::BzImage { path, source })?;
            fs::write(to, kernel).at("write", to)
        })
    }

    /// With these modules and what they need.
    pub fn write_initramfs(&self, to: &Path, init: &Path, modules: &[&str]) -> Result<()> {
        step("initramfs", || {
            let modules = modules::collect(&self.modules(), modules)?;
            write_initramfs(to, init, &modules)
        })
    }
}

/// The one directory under the package's `lib/modules`.
fn release(deb: &Path, unpacked: &Path) -> Result<String> {
    let modules = unpacked.join("lib/modules");
    let missing = || Error::NotAKernel { package: deb.to_owned(), lacks: "lib/modules/<release>" };
    let entry =
        fs::read_dir(&modules).map_err(|_| missing())?.next().ok_or_else(missing)?.at("list", &modules)?;
    entry.file_name().into_string().map_err(|_| missing())
}

fn write_initramfs(path: &Path, init: &Path, modules: &[Module]) -> Result<()> {
    let init = fs::read(init).at("read", init)?;
    let list: String = modules.iter().map(|module| format!("{}\n", module.file_name)).collect();
    let write = || {
        let mut archive = Archive::new(BufWriter::new(File::create(path)?));
        archive.directory("dev")?;
        // The kernel gives these to init before anything is mounted; without /dev/null a program whose
        // console cannot be opened has nothing to put in its place.
        archive.character_device("dev/console", 0o600, (5, 1))?;
        archive.character_device("dev/null", 0o666, (1, 3))?;
        archive.directory("root")?;
        archive.directory(MODULES)?;
        archive.file(MODULE_LIST, 0o644, list.as_bytes())?;
        for module in modules {
            archive.file(&format!("{MODULES}/{}", module.file_name), 0o644, &module.content)?;
        }
        archive.file("init", 0o755, &init)?;
        archive.finish()?.flush()
    };
    write().at("write", path)
}
