//! The image's files as a directory, before they become a file system.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};

use crate::error::{At, Error, Result};

/// What the build left of its host: init writes these at the first boot.
const OF_THE_HOST: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];
/// Empty means that the machine has none yet.
const MACHINE_ID: &str = "etc/machine-id";

/// Unpacks a base system without its devices: the guest's kernel makes those.
pub fn unpack(tar: &Path, to: &Path) -> Result<()> {
    let mut archive =
        tar::Archive::new(io::BufReader::with_capacity(1 << 20, File::open(tar).at("open", tar)?));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_unpack_xattrs(true);
    // Directories last, deepest first: their times would change with every file put in them.
    let mut directories = Vec::new();
    for entry in archive.entries().at("read", tar)? {
        let mut entry = entry.at("read", tar)?;
        let path = entry.path().at("read", tar)?.into_owned();
        if is_device(&path) {
            continue;
        }
        if entry.header().entry_type().is_dir() {
            directories.push(entry);
        } else {
            entry.unpack_in(to).at("unpack", &path)?;
        }
    }
    directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut directory in directories {
        directory.unpack_in(to).at("unpack a directory to", to)?;
    }
    Ok(())
}

/// Anything below `./dev`, but not that directory itself.
fn is_device(path: &Path) -> bool {
    let mut parts = path.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir));
    parts.next() == Some(Component::Normal("dev".as_ref())) && parts.next().is_some()
}

/// Takes away what is of the host that built it, and makes no file younger than `epoch`.
pub fn finish(tree: &Path, epoch: u64) -> Result<()> {
    for path in OF_THE_HOST {
        match fs::remove_file(tree.join(path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at("remove", tree.join(path)),
            _ => {}
        }
    }
    let machine_id = inside(tree, MACHINE_ID)?;
    fs::write(&machine_id, "").at("write", &machine_id)?;
    fs::set_permissions(&machine_id, Permissions::from_mode(0o644)).at("set the mode of", &machine_id)?;
    for path in walk(tree)? {
        limit_time(&path, epoch)?;
    }
    Ok(())
}

/// Adds a program.
pub fn install(tree: &Path, to: &str, program: &Path) -> Result<()> {
    let to = inside(tree, to)?;
    fs::copy(program, &to).at("write", &to)?;
    fs::set_permissions(&to, Permissions::from_mode(0o755)).at("set the mode of", &to)
}

/// Where a path of the image is on the machine that makes it. Its directory may be a link, but none that leads out.
fn inside(tree: &Path, path: &str) -> Result<PathBuf> {
    let whole = tree.join(path);
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(Error::OutsideTree { path: whole });
    };
    let parent = parent.canonicalize().at("find", parent)?;
    let root = tree.canonicalize().at("find", tree)?;
    if !parent.starts_with(&root) {
        return Err(Error::OutsideTree { path: whole });
    }
    let found = parent.join(name);
    match fs::symlink_metadata(&found) {
        // Writing follows links.
        Ok(metadata) if metadata.is_symlink() => Err(Error::OutsideTree { path: found }),
        _ => Ok(found),
    }
}

/// Whole seconds, not after `epoch`.
pub fn limit_time(path: &Path, epoch: u64) -> Result<()> {
    let metadata = fs::symlink_metadata(path).at("look at", path)?;
    let seconds = metadata.mtime().clamp(0, epoch.cast_signed());
    let time = TimeSpec::new(seconds, 0);
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).at("set the time of", path)
}

/// Everything below a directory, not the directory itself; each directory before its content, in order of names.
pub fn walk(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![tree.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let entry = entry.at("list", &dir)?;
            if entry.file_type().at("look at", entry.path())?.is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The installed Debian packages with their versions.
pub fn packages(tree: &Path) -> Result<BTreeMap<String, String>> {
    let status = tree.join("var/lib/dpkg/status");
    Ok(parse_status(&fs::read_to_string(&status).at("read", &status)?))
}

fn parse_status(status: &str) -> BTreeMap<String, String> {
    let field = |record: &str, name: &str| {
        record.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    };
    status
        .split("\n\n")
        .filter(|record| field(record, "Status").is_some_and(|status| status.ends_with(" installed")))
        .filter_map(|record| Some((field(record, "Package")?, field(record, "Version")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_left_out_but_not_their_directory() {
        for device in ["./dev/null", "dev/pts/", "/dev/shm/x"] {
            assert!(is_device(Path::new(device)), "{device}");
        }
        for other in ["./dev/", "dev", "./device/null", "./usr/dev/null"] {
            assert!(!is_device(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn nothing_is_written_outside_the_tree() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("usr/sbin")).unwrap();
        std::os::unix::fs::symlink("usr/sbin", tree.join("sbin")).unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.join("usr/file")).unwrap();
        let expected = tree.canonicalize().unwrap().join("usr/sbin/wrenn-init");
        assert_eq!(inside(&tree, "sbin/wrenn-init").unwrap(), expected);
        assert!(matches!(inside(&tree, "etc/passwd"), Err(Error::OutsideTree { .. })));
        assert!(matches!(inside(&tree, "usr/file"), Err(Error::OutsideTree { .. })));
    }

    #[test]
    fn only_installed_packages_are_listed() {
        let status = "Package: sudo\nStatus: install ok installed\nVersion: 1.9\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n";
        let packages = parse_status(status);
        assert_eq!(packages.into_iter().collect::<Vec<_>>(), [("sudo".to_owned(), "1.9".to_owned())]);
    }
}
