//! What there is.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{At, Result},
    image, kernel,
    layout::Layout,
};

/// One line for each kernel and image.
pub fn list(layout: &Layout) -> Result<String> {
    let mut text = String::new();
    for dir in visible_dirs(&layout.kernels())? {
        if let Some(kernel) = kernel::read_manifest(&dir)? {
            // Writing to a string cannot fail.
            _ = writeln!(text, "kernel  {:<25} {}", kernel.version, dir.display());
        }
    }
    for team in visible_dirs(&layout.teams())? {
        for dir in visible_dirs(&team)? {
            if let Some(image) = image::read_manifest(&dir)? {
                let mib = image.allocated_bytes >> 20;
                _ = writeln!(text, "image   {:<16} {mib:>4} MiB {}", image.name, dir.display());
            }
        }
    }
    Ok(text)
}

/// In order of their names; those in the making begin with a dot.
fn visible_dirs(parent: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).at("list", parent),
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let entry = entry.at("list", parent)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.file_type().at("look at", entry.path())?.is_dir() {
            dirs.push(entry.path());
        }
    }
    dirs.sort();
    Ok(dirs)
}
