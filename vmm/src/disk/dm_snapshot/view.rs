//! What a view of this store consists of.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::changes::file_bytes;
use crate::{
    disk::{clone_or_copy, number::FileId, sparse},
    failure::{Doing as _, Failure, Teardown},
    paths::base_of_disk,
};

/// The sector that devices are measured in.
const SECTOR: u64 = 512;

/// A view's own file of changes, and its own name for the base that it shares with others.
#[derive(Clone, Debug)]
pub struct ViewFiles {
    pub changes: PathBuf,
    pub changes_id: FileId,
    pub base: PathBuf,
    pub base_id: FileId,
    /// As large as the base, and so is every view of it.
    pub sectors: u64,
}

impl ViewFiles {
    /// None if the disk is one flat file.
    pub fn of(disk: &Path) -> Result<Option<Self>, Failure> {
        let base = base_of_disk(disk);
        let of_base = match fs::metadata(&base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.doing(|| format!("looking at {}", base.display()))?,
        };
        let of_changes = fs::metadata(disk).doing(|| format!("looking at {}", disk.display()))?;
        Ok(Some(Self {
            changes: disk.to_owned(),
            changes_id: FileId::from(&of_changes),
            base,
            base_id: FileId::from(&of_base),
            sectors: of_base.len() / SECTOR,
        }))
    }

    /// The view `at` of `from`, which is flat or itself a view: in constant time of a flat one, else in the time that
    /// its changes take to copy. On error nothing is left.
    pub fn make(from: &Path, at: &Path) -> Result<(), Failure> {
        let made = match Self::of(from)? {
            Some(files) => {
                link(&files.base, &base_of_disk(at)).and_then(|()| clone_or_copy(&files.changes, at))
            }
            None => link(from, &base_of_disk(at)).and_then(|()| no_changes(from, at)),
        };
        if made.is_err() {
            // What went wrong first is what is told.
            let _left = Self::remove(at);
        }
        made
    }

    /// Whatever there is of it, flat or not.
    pub fn remove(disk: &Path) -> Result<(), Failure> {
        let mut teardown = Teardown::default();
        for path in [disk.to_owned(), base_of_disk(disk)] {
            teardown.step(|| format!("removing {}", path.display()), fs::remove_file(&path));
        }
        teardown.finish().map_err(|failures| {
            let action = format!("removing the disk {}", disk.display());
            Failure::new(action, io::Error::other(failures.to_string()))
        })
    }
}

/// Another name for what never changes: it stays as long as any view of it does, whoever made it.
fn link(file: &Path, at: &Path) -> Result<(), Failure> {
    fs::hard_link(file, at).doing(|| format!("linking {} to {}", file.display(), at.display()))
}

/// All zeros, which the kernel takes for one to begin.
fn no_changes(base: &Path, at: &Path) -> Result<(), Failure> {
    let bytes = fs::metadata(base).doing(|| format!("looking at {}", base.display()))?.len();
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        let error =
            io::Error::new(io::ErrorKind::InvalidInput, format!("{bytes} bytes are no whole sectors"));
        return Err(Failure::new(format!("making a view of {}", base.display()), error));
    }
    let file = sparse::create(at)?;
    file.set_len(file_bytes(bytes)).doing(|| format!("making {}", at.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_view_takes_nothing_and_keeps_its_base() {
        let directory = tempfile::tempdir().unwrap();
        let [golden, one, two] = ["golden", "one", "two"].map(|name| directory.path().join(name));
        fs::write(&golden, vec![7; 1 << 20]).unwrap();
        ViewFiles::make(&golden, &one).unwrap();
        let files = ViewFiles::of(&one).unwrap().unwrap();
        assert_eq!(files.sectors, 2048);
        assert_eq!(files.base_id, FileId::from(&fs::metadata(&golden).unwrap()));
        assert_eq!(fs::metadata(&one).unwrap().blocks(), 0);
        assert!(ViewFiles::of(&golden).unwrap().is_none(), "a flat file is no view");

        fs::remove_file(&golden).unwrap();
        fs::write(&one, vec![3; 4096]).unwrap();
        ViewFiles::make(&one, &two).unwrap();
        let copy = ViewFiles::of(&two).unwrap().unwrap();
        assert_eq!((copy.base_id, copy.sectors), (files.base_id, 2048));
        assert_ne!(copy.changes_id, files.changes_id);
        assert_eq!(fs::read(&two).unwrap(), vec![3; 4096]);

        for view in [&one, &two, &two] {
            ViewFiles::remove(view).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [base, view] = ["base", "view"].map(|name| directory.path().join(name));
        for content in [&[][..], &[1; 1000][..]] {
            fs::write(&base, content).unwrap();
            assert!(ViewFiles::make(&base, &view).is_err());
        }
        fs::remove_file(&base).unwrap();
        assert!(ViewFiles::make(&base, &view).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
