//! The guest kernel and the images that stacks start from.

use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Folders of a `WRENN_DIR` that are made once and shared by every stack.
const SHARED: [&str; 2] = ["kernels", "images"];

/// The `WRENN_DIR` that holds `kernels/` and `images/`, named by `WRENN_TEST_ASSETS`.
pub fn directory() -> Result<PathBuf> {
    let dir = std::env::var_os("WRENN_TEST_ASSETS").map(PathBuf::from).context(
        "WRENN_TEST_ASSETS must name a directory with kernels/ and images/, as `make up` makes it",
    )?;
    for folder in SHARED {
        ensure!(dir.join(folder).is_dir(), "{} has no {folder}/", dir.display());
    }
    dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))
}

/// Puts kernels and images into a stack's own directory: hard links where the file system allows, else copies.
pub fn link_into(assets: &Path, stack: &Path) -> Result<()> {
    for folder in SHARED {
        link_tree(&assets.join(folder), &stack.join(folder))?;
    }
    Ok(())
}

fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            link_tree(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)
                .with_context(|| format!("linking {}", target.display()))?;
        } else if kind.is_file() && fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
        }
    }
    Ok(())
}

/// The kernel made last: its uncompressed image and its initramfs.
pub fn kernel(assets: &Path) -> Result<(PathBuf, PathBuf)> {
    let kernels = assets.join("kernels");
    let made = |entry: DirEntry| {
        let manifest =
            fs::metadata(entry.path().join("kernel.json")).and_then(|manifest| manifest.modified());
        Some((manifest.ok()?, entry.path()))
    };
    let entries = fs::read_dir(&kernels).with_context(|| format!("reading {}", kernels.display()))?;
    let newest = entries.flatten().filter_map(made).max();
    let (_, dir) = newest.with_context(|| format!("no kernel in {}", kernels.display()))?;
    Ok((dir.join("vmlinux"), dir.join("initrd.cpio")))
}

/// The disk image of the platform's `minimal` template: the only one a fresh installation has.
pub fn image(assets: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    find(&assets.join("images"), OsStr::new("rootfs.ext4"), &mut found)?;
    ensure!(found.len() == 1, "one image is wanted under {}, not {found:?}", assets.display());
    Ok(found.remove(0))
}

fn find(dir: &Path, name: &OsStr, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            find(&path, name, found)?;
        } else if path.file_name() == Some(name) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_tree_has_the_same_files_and_links() {
        let root = tempfile::tempdir().expect("a directory");
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir_all(from.join("6.1")).expect("made");
        fs::write(from.join("6.1/vmlinux"), "kernel").expect("written");
        fs::write(from.join("6.1/kernel.json"), "{}").expect("written");
        symlink("6.1", from.join("newest")).expect("linked");
        link_tree(&from, &to).expect("linked");
        assert_eq!(fs::read_to_string(to.join("newest/vmlinux")).expect("read"), "kernel");
        assert!(to.join("newest").is_symlink());
    }
}
