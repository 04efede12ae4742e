//! Results become visible only complete: written aside, flushed, renamed.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::TempDir;

use crate::error::{At, Result};

/// A directory in the making. Dropped unpublished, it is removed.
pub struct Staged {
    dir: TempDir,
    destination: PathBuf,
}

impl Staged {
    /// Beside `destination`, with a name that starts with a dot, which readers of its parent pass over.
    pub fn new(destination: &Path) -> Result<Self> {
        let parent = destination.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).at("make", parent)?;
        let dir = tempfile::Builder::new()
            .prefix(".making-")
            .tempdir_in(parent)
            .at("make a directory in", parent)?;
        Ok(Self { dir, destination: destination.to_owned() })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts the directory in its place, instead of what was there before, in one step.
    pub fn publish(self) -> Result<PathBuf> {
        let Self { dir, destination } = self;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).at("open up", dir.path())?;
        for entry in fs::read_dir(dir.path()).at("list", dir.path())? {
            let path = entry.at("list", dir.path())?.path();
            File::open(&path).and_then(|file| file.sync_all()).at("flush", &path)?;
        }
        sync_dir(dir.path())?;
        if destination.exists() {
            renameat2(AT_FDCWD, dir.path(), AT_FDCWD, &destination, RenameFlags::RENAME_EXCHANGE)
                .at("replace", &destination)?;
            let old = dir.path().to_owned();
            dir.close().at("remove", old)?;
        } else {
            fs::rename(dir.path(), &destination).at("make", &destination)?;
            // Nothing has this name any more.
            _ = dir.keep();
        }
        sync_dir(destination.parent().unwrap_or(Path::new("/")))?;
        Ok(destination)
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).at("flush", path)
}

/// Writes a file whole or not at all.
pub fn write_file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let staged =
        tempfile::Builder::new().prefix(".making-").tempfile_in(parent).at("make a file in", parent)?;
    write(staged.path())?;
    staged.as_file().sync_all().at("flush", staged.path())?;
    staged.persist(path).map_err(|e| e.error).at("make", path)?;
    sync_dir(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_replaces_the_whole_directory_and_leaves_nothing_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("deep/result");
        for content in ["first", "second"] {
            let staged = Staged::new(&destination).unwrap();
            fs::write(staged.path().join(content), content).unwrap();
            assert!(!destination.join(content).exists());
            staged.publish().unwrap();
            let names: Vec<_> = fs::read_dir(&destination).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names, [content]);
        }
        assert_eq!(fs::read_dir(destination.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_published_disappears() {
        let root = tempfile::tempdir().unwrap();
        let staged = Staged::new(&root.path().join("result")).unwrap();
        fs::write(staged.path().join("half"), "").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
