//! Where things are under `WRENN_DIR`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::error::{At, Result};

/// The platform's own team and the built-in templates: the lowest ids in their wire form, 16 bytes as 25 digits of
/// base 36. The control plane has rows for the same ids.
pub const PLATFORM_TEAM: &str = "team-0000000000000000000000000";
pub const MINIMAL_TEMPLATE: &str = "tpl-0000000000000000000000000";
pub const PYTHON_TEMPLATE: &str = "tpl-0000000000000000000000001";
pub const CODE_INTERPRETER_TEMPLATE: &str = "tpl-0000000000000000000000002";

pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the directory if there is none.
    pub fn new(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).at("make", root)?;
        Ok(Self { root: root.canonicalize().at("resolve", root)? })
    }

    /// `kernels/`: one directory a version, with `vmlinux`, `initrd.cpio` and `kernel.json`.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// `images/teams/`: one directory a team, in it one a template with `rootfs.ext4` and `image.json`.
    pub fn teams(&self) -> PathBuf {
        self.root.join("images/teams")
    }

    /// `test-host/`: `vmlinux`, `initrd.cpio`, `rootfs.ext4` and `test-host.json`.
    pub fn test_host(&self) -> PathBuf {
        self.root.join("test-host")
    }

    /// Downloads and intermediate results; may be deleted at any time no build runs.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }
}

/// Held while something is made: two at once would only do everybody's work twice. Ends with the process.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for whoever has it.
    pub fn take(layout: &Layout) -> Result<Self> {
        let cache = layout.cache();
        fs::create_dir_all(&cache).at("make", &cache)?;
        let path = cache.join("lock");
        let file = File::create(&path).at("open", &path)?;
        file.lock().at("lock", &path)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platforms_ids_are_the_lowest_numbers_of_sixteen_bytes_in_base_36() {
        // 36²⁵ is the first power of 36 above 2¹²⁸.
        assert!(25.0 * 36_f64.log2() > 128.0 && 24.0 * 36_f64.log2() < 128.0);
        for (id, prefix, number) in [
            (PLATFORM_TEAM, "team-", 0),
            (MINIMAL_TEMPLATE, "tpl-", 0),
            (PYTHON_TEMPLATE, "tpl-", 1),
            (CODE_INTERPRETER_TEMPLATE, "tpl-", 2),
        ] {
            assert_eq!(id.strip_prefix(prefix), Some(format!("{number:025}").as_str()));
        }
    }
}
