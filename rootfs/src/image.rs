//! Disk images: a base system with the guest's own programs, as one ext4 file.

pub mod base;
pub mod ext4;
pub mod recipe;
pub mod tree;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use self::recipe::Template;
use crate::{
    digest,
    error::{At, Error, Result},
    layout::{Layout, PLATFORM_TEAM},
    manifest,
    progress::step,
    publish::Staged,
};

/// What is added to the base system, both static.
pub struct Programs {
    pub envd: PathBuf,
    pub init: PathBuf,
}

/// `image.json`.
#[derive(Serialize, Deserialize)]
pub struct Manifest {
    pub name: String,
    pub team: String,
    pub template: String,
    /// Of everything the image was made from.
    pub inputs: String,
    pub rootfs_sha256: String,
    /// The file's length, which is the least a capsule's disk can have.
    pub minimum_bytes: u64,
    /// What it takes on the disk.
    pub allocated_bytes: u64,
    /// Debian packages and their versions.
    pub packages: BTreeMap<String, String>,
}

const MANIFEST: &str = "image.json";
const ROOTFS: &str = "rootfs.ext4";

/// Makes the image's directory if it is not there as its inputs want it; its path.
pub fn build(
    layout: &Layout,
    template: &'static Template,
    programs: &Programs,
    refresh: bool,
) -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let recipe = &template.recipe;
    eprintln!("image {}", recipe.name);
    let base = base::make(&layout.cache().join("base"), recipe, refresh)?;
    let inputs = digest::Inputs::default()
        .with("recipe", &recipe.key())
        .with("base", &base.sha256)
        .with("mke2fs", &ext4::tool_version()?)
        .with("envd", &digest::of_file(&programs.envd)?)
        .with("init", &digest::of_file(&programs.init)?)
        .key();
    let destination = layout.teams().join(PLATFORM_TEAM).join(template.id);
    if read_manifest(&destination)?.is_some_and(|made| made.inputs == inputs) {
        eprintln!("  up to date");
        return Ok(destination);
    }

    let cache = layout.cache();
    let dir = tempfile::tempdir_in(&cache).at("make a directory in", &cache)?;
    // Its mode becomes that of the image's root.
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).at("make", &tree)?;
    step("unpack", || tree::unpack(&base.tar, &tree))?;
    step("add init and envd", || {
        tree::install(&tree, "sbin/wrenn-init", &programs.init)?;
        tree::install(&tree, "usr/local/bin/envd", &programs.envd)?;
        tree::finish(&tree, recipe.epoch)
    })?;
    let packages = tree::packages(&tree)?;
    let staged = Staged::new(&destination)?;
    let rootfs = staged.path().join(ROOTFS);
    step("file system", || ext4::make(&tree, &rootfs, &recipe.filesystem()))?;

    let metadata = fs::metadata(&rootfs).at("look at", &rootfs)?;
    let manifest = Manifest {
        name: recipe.name.to_owned(),
        team: PLATFORM_TEAM.to_owned(),
        template: template.id.to_owned(),
        inputs,
        rootfs_sha256: step("digest", || digest::of_file(&rootfs))?,
        minimum_bytes: metadata.len(),
        allocated_bytes: metadata.blocks() * 512,
        packages,
    };
    manifest::write(&staged.path().join(MANIFEST), &manifest)?;
    staged.publish()
}

/// None if there is none.
pub fn read_manifest(image: &Path) -> Result<Option<Manifest>> {
    manifest::read(&image.join(MANIFEST))
}
