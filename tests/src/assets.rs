//! The guest kernel and the images that stacks start from.

use std::fs::{self, DirEntry};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const KERNELS: &str = "kernels";
const IMAGES: &str = "images";

/// The image that everything starts from unless it says otherwise.
pub const MINIMAL: &str = "minimal";
/// The one with Python and Jupyter.
pub const CODE_INTERPRETER: &str = "code-interpreter";

/// The `WRENN_DIR` that holds `kernels/` and `images/`, named by `WRENN_TEST_ASSETS`.
pub fn directory() -> Result<PathBuf> {
    let dir = std::env::var_os("WRENN_TEST_ASSETS").map(PathBuf::from).context(
        "WRENN_TEST_ASSETS must name a directory with kernels/ and images/, as `make up` makes it",
    )?;
    for folder in [KERNELS, IMAGES] {
        ensure!(dir.join(folder).is_dir(), "{} has no {folder}/", dir.display());
    }
    dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))
}

/// Puts kernels and the images of these names into a stack's own directory: hard links where the file system allows,
/// else copies. Of images that were not made the stack itself says so when one is wanted.
pub fn link_into(assets: &Path, stack: &Path, names: &[&str]) -> Result<()> {
    link_tree(&assets.join(KERNELS), &stack.join(KERNELS))?;
    fs::create_dir_all(stack.join(IMAGES)).with_context(|| format!("making {}", stack.display()))?;
    for image in images(assets)?.into_iter().filter(|image| names.contains(&image.name.as_str())) {
        link_tree(&assets.join(&image.directory), &stack.join(&image.directory))?;
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

/// An image that `wrenn-rootfs` made.
#[derive(Debug)]
pub struct Image {
    /// Of its template.
    pub name: String,
    /// Below the `WRENN_DIR`.
    pub directory: PathBuf,
}

impl Image {
    pub fn disk(&self, assets: &Path) -> PathBuf {
        assets.join(&self.directory).join("rootfs.ext4")
    }
}

/// The image of one of the platform's templates.
pub fn image(assets: &Path, name: &str) -> Result<Image> {
    let found = images(assets)?.into_iter().find(|image| image.name == name);
    found.with_context(|| {
        format!("no image `{name}` in {}: `wrenn-rootfs build {name}` makes it", assets.display())
    })
}

/// Every image there is, by what its `image.json` says.
fn images(assets: &Path) -> Result<Vec<Image>> {
    #[derive(Deserialize)]
    struct Manifest {
        name: String,
        team: String,
        template: String,
    }
    let mut found = Vec::new();
    for team in directories(&assets.join(IMAGES).join("teams"))? {
        for directory in directories(&team)? {
            let manifest = directory.join("image.json");
            let text = fs::read(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
            let Manifest { name, team, template } =
                serde_json::from_slice(&text).with_context(|| format!("parsing {}", manifest.display()))?;
            found.push(Image { name, directory: Path::new(IMAGES).join("teams").join(team).join(template) });
        }
    }
    Ok(found)
}

/// What is in the making begins with a dot.
fn directories(of: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(of).with_context(|| format!("reading {}", of.display()))?;
    let visible = entries.flatten().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    Ok(visible.map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_images_only_those_that_are_named_are_linked() {
        let root = tempfile::tempdir().expect("a directory");
        let (assets, stack) = (root.path().join("assets"), root.path().join("stack"));
        fs::create_dir_all(assets.join("kernels/6.1")).expect("made");
        for (name, template) in [(MINIMAL, "tpl-0"), ("python", "tpl-1"), ("half", ".tpl-2")] {
            let directory = assets.join("images/teams/team-0").join(template);
            fs::create_dir_all(&directory).expect("made");
            fs::write(directory.join("rootfs.ext4"), name).expect("written");
            let manifest = serde_json::json!({ "name": name, "team": "team-0", "template": template });
            fs::write(directory.join("image.json"), manifest.to_string()).expect("written");
        }
        link_into(&assets, &stack, &[MINIMAL, CODE_INTERPRETER]).expect("linked");
        assert!(stack.join("kernels/6.1").is_dir());
        let linked = images(&stack).expect("read");
        assert_eq!(linked.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), [MINIMAL]);
        assert_eq!(fs::read_to_string(linked[0].disk(&stack)).expect("read"), MINIMAL);
        assert_eq!(
            image(&assets, "python").expect("there").directory,
            Path::new("images/teams/team-0/tpl-1")
        );
        let missing = image(&assets, CODE_INTERPRETER).expect_err("not there").to_string();
        assert!(missing.contains("`wrenn-rootfs build code-interpreter`"), "{missing}");
    }

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
