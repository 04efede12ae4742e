//! Where the built binaries are.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The binary `name` from `WRENN_BIN_DIR`, or from the target directory this test was built into.
pub fn find(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("WRENN_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => own_target_dir()?,
    };
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is missing: build the workspace first, or set WRENN_BIN_DIR", path.display());
    Ok(path)
}

/// `target/<profile>`: a test binary lies in `deps` below it, a program in it.
fn own_target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program's own file")?;
    let dir = own.parent().context("this program's file has no folder")?;
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() })
}
