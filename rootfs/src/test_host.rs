//! The system of a virtual machine that stands for a host: where KVM, device mapper and root are real, whatever the
//! machine around it offers.
//!
//! It is the guest kernel's package with all of its modules, and a base system with what a host runs beside Wrenn. What
//! it is started for is on a second disk, so that the system is made once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    digest,
    error::{At, Error, Result},
    image::{base, ext4, recipe::TEST_HOST, tree},
    kernel::{Package, Unpacked},
    layout::Layout,
    manifest,
    progress::step,
    publish::Staged,
    tool::Tool,
};

/// What it takes to find the disks, on a PCI bus.
const DRIVERS: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Its first program, which the one of the initramfs starts by this name.
const INIT: &str = "sbin/wrenn-init";
const HAND_OVER: &str = include_str!("test_host/init");
const MANIFEST: &str = "test-host.json";

/// `test-host.json`.
#[derive(Serialize, Deserialize)]
struct Manifest {
    /// Of everything the files were made from.
    inputs: String,
    /// What the kernel calls itself (`uname -r`).
    release: String,
}

/// Makes the directory if it is not there as its inputs want it; its path.
pub fn make(layout: &Layout, init: &Path, refresh: bool) -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    eprintln!("test host");
    let recipe = &TEST_HOST;
    let package = Package::newest()?;
    let base = base::make(&layout.cache().join("base"), recipe, refresh)?;
    let inputs = digest::Inputs::default()
        .with("recipe", &recipe.key())
        .with("base", &base.sha256)
        .with("mke2fs", &ext4::tool_version()?)
        .with("kernel", &package.identity()?)
        .with("drivers", &DRIVERS.join(" "))
        .with("init", &digest::of_file(init)?)
        .with("hand over", HAND_OVER)
        .key();
    let destination = layout.test_host();
    let made: Option<Manifest> = manifest::read(&destination.join(MANIFEST))?;
    if made.is_some_and(|made| made.inputs == inputs) {
        eprintln!("  up to date");
        return Ok(destination);
    }

    let kernel = Unpacked::from(&package, layout)?;
    let staged = Staged::new(&destination)?;
    kernel.write_vmlinux(&staged.path().join("vmlinux"))?;
    kernel.write_initramfs(&staged.path().join("initrd.cpio"), init, &DRIVERS)?;
    let cache = layout.cache();
    let dir = tempfile::tempdir_in(&cache).at("make a directory in", &cache)?;
    // Its mode becomes that of the image's root.
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).at("make", &tree)?;
    step("unpack", || tree::unpack(&base.tar, &tree))?;
    step("add modules and init", || {
        add_modules(&kernel, &tree)?;
        let script = dir.path().join("init");
        fs::write(&script, HAND_OVER).at("write", &script)?;
        tree::install(&tree, INIT, &script)?;
        tree::finish(&tree, recipe.epoch)
    })?;
    step("file system", || ext4::make(&tree, &staged.path().join("rootfs.ext4"), &recipe.filesystem()))?;
    let manifest = Manifest { inputs, release: kernel.release };
    manifest::write(&staged.path().join(MANIFEST), &manifest)?;
    staged.publish()
}

/// All modules of the kernel, with the lists by which one that is asked for is found.
fn add_modules(kernel: &Unpacked, tree: &Path) -> Result<()> {
    let all = tree.join("usr/lib/modules");
    fs::create_dir_all(&all).at("make", &all)?;
    let to = all.join(&kernel.release);
    fs::rename(kernel.modules(), &to).at("make", &to)?;
    // The system's own program: its version is the one that reads the lists.
    Tool::new("chroot").arg(tree).args(["depmod", &kernel.release]).run().map(drop)
}
