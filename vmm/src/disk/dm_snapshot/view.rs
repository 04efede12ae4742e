//! What a view of this store consists of.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    changes::{Changes, file_bytes},
    merge::{merge, merged_from},
};
use crate::{
    disk::{DiskError, clone_or_copy, number::FileId, sparse},
    failure::{Doing as _, Failure, Teardown},
    paths::{base_of_disk, layer_of_disk, layers_of_disk},
};

/// The sector that devices are measured in.
const SECTOR: u64 = 512;
/// What a merge leaves free, in bytes. One that cannot costs every capsule dear whose guest writes then; a device more costs
/// one a little.
const LEFT_FREE: u64 = 1 << 30;

/// A file of changes.
#[derive(Clone, Debug)]
pub struct Layer {
    pub path: PathBuf,
    pub id: FileId,
    /// What it takes; it is sparse.
    bytes: u64,
}

/// A view's own file of changes, and its own names for what it shares with others: files of earlier changes, and the base.
#[derive(Clone, Debug)]
pub struct ViewFiles {
    /// The only one that is ever written to.
    pub own: Layer,
    /// Each has changes of what those before it show.
    pub earlier: Vec<Layer>,
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
        let own = Layer::at(disk.to_owned())?;
        let earlier = layers_of_disk(disk).doing(|| format!("looking for layers of {}", disk.display()))?;
        Ok(Some(Self {
            own,
            earlier: earlier.into_iter().map(Layer::at).collect::<Result<_, _>>()?,
            base,
            base_id: FileId::from(&of_base),
            sectors: of_base.len() / SECTOR,
        }))
    }

    /// The view `at` of `from`, which is flat or itself a view and is not written to any more: in constant time, but
    /// where there are so many files of changes that some are merged, as far as `free` bytes have room for it. On error
    /// nothing is left.
    pub fn make(from: &Path, at: &Path, free: u64) -> Result<(), DiskError> {
        whole_or_nothing(at, || {
            match Self::of(from)? {
                Some(files) => files.lay_below(at, free)?,
                None => link(from, &base_of_disk(at))?,
            }
            Ok(no_changes(at)?)
        })
    }

    /// All but a file of changes of its own for the view `at` of what this one shows.
    fn lay_below(&self, at: &Path, free: u64) -> Result<(), DiskError> {
        link(&self.base, &base_of_disk(at))?;
        let (mut layers, mut sizes) = (Vec::new(), Vec::new());
        for Layer { path, bytes, .. } in self.layers() {
            if !Changes::open(path)?.is_empty()? {
                layers.push(path.as_path());
                sizes.push(*bytes);
            }
        }
        let disk_bytes = self.sectors * SECTOR;
        let from = merged_from(&sizes, disk_bytes);
        let written = sizes[from..].iter().sum::<u64>().min(file_bytes(disk_bytes));
        let has_room = free.saturating_sub(written) >= LEFT_FREE;
        if !has_room && written > 0 {
            tracing::warn!(disk = %at.display(), written, free, "no room to merge what earlier lives changed");
        }
        let (kept, merged) = layers.split_at(if has_room { from } else { layers.len() });
        for (number, layer) in (1..).zip(kept) {
            link(layer, &layer_of_disk(at, number))?;
        }
        if !merged.is_empty() {
            merge(merged, disk_bytes, &layer_of_disk(at, kept.len() + 1))?;
        }
        Ok(())
    }

    /// The same view once more, in the time that its own changes take to copy. On error nothing is left.
    pub fn copy(&self, at: &Path) -> Result<(), DiskError> {
        self.repeat(at, clone_or_copy)
    }

    /// The same view in the same files, in constant time. On error nothing is left.
    pub fn link(&self, at: &Path) -> Result<(), DiskError> {
        self.repeat(at, link)
    }

    fn repeat(&self, at: &Path, own: fn(&Path, &Path) -> Result<(), Failure>) -> Result<(), DiskError> {
        whole_or_nothing(at, || {
            link(&self.base, &base_of_disk(at))?;
            for (number, layer) in (1..).zip(&self.earlier) {
                link(&layer.path, &layer_of_disk(at, number))?;
            }
            Ok(own(&self.own.path, at)?)
        })
    }

    /// All files of changes, the view's own last.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.earlier.iter().chain([&self.own])
    }

    /// Whatever there is of it, flat or not.
    pub fn remove(disk: &Path) -> Result<(), Failure> {
        let mut teardown = Teardown::default();
        let mut files = vec![disk.to_owned(), base_of_disk(disk)];
        match layers_of_disk(disk) {
            Ok(layers) => files.extend(layers),
            Err(error) => {
                teardown.step(|| format!("looking for layers of {}", disk.display()), Err::<(), _>(error));
            }
        }
        for path in files {
            teardown.step(|| format!("removing {}", path.display()), fs::remove_file(&path));
        }
        teardown.finish().map_err(|failures| {
            let action = format!("removing the disk {}", disk.display());
            Failure::new(action, io::Error::other(failures.to_string()))
        })
    }
}

impl Layer {
    fn at(path: PathBuf) -> Result<Self, Failure> {
        let metadata = fs::metadata(&path).doing(|| format!("looking at {}", path.display()))?;
        // The unit of st_blocks, whatever the file system's own.
        Ok(Self { id: FileId::from(&metadata), bytes: metadata.blocks() * 512, path })
    }
}

fn whole_or_nothing(at: &Path, make: impl FnOnce() -> Result<(), DiskError>) -> Result<(), DiskError> {
    let made = make();
    if made.is_err() {
        // What went wrong first is what is told.
        let _left = ViewFiles::remove(at);
    }
    made
}

/// Another name for what never changes: it stays as long as any view of it does, whoever made it.
fn link(file: &Path, at: &Path) -> Result<(), Failure> {
    fs::hard_link(file, at).doing(|| format!("linking {} to {}", file.display(), at.display()))
}

/// All zeros, which the kernel takes for one to begin. The base has its name already.
fn no_changes(at: &Path) -> Result<(), Failure> {
    let base = base_of_disk(at);
    let bytes = fs::metadata(&base).doing(|| format!("looking at {}", base.display()))?.len();
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
    use super::{
        super::{changes::tests::write as write_changes, merge::MERGE_AT},
        *,
    };

    const FREE: u64 = 4 << 30;

    #[test]
    fn a_view_takes_nothing_and_keeps_its_base() {
        let directory = tempfile::tempdir().unwrap();
        let [golden, one, two] = ["golden", "one", "two"].map(|name| directory.path().join(name));
        fs::write(&golden, vec![7; 1 << 20]).unwrap();
        ViewFiles::make(&golden, &one, FREE).unwrap();
        let files = ViewFiles::of(&one).unwrap().unwrap();
        assert_eq!(files.sectors, 2048);
        assert_eq!(files.base_id, FileId::from(&fs::metadata(&golden).unwrap()));
        assert_eq!(fs::metadata(&one).unwrap().blocks(), 0);
        assert!(ViewFiles::of(&golden).unwrap().is_none(), "a flat file is no view");

        fs::remove_file(&golden).unwrap();
        write_changes(&one, 1 << 20, &[(3, vec![3; 4096])]);
        files.copy(&two).unwrap();
        let copy = ViewFiles::of(&two).unwrap().unwrap();
        assert_eq!((copy.base_id, copy.sectors), (files.base_id, 2048));
        assert_ne!(copy.own.id, files.own.id);
        assert_eq!(fs::read(&two).unwrap(), fs::read(&one).unwrap());

        for view in [&one, &two, &two] {
            ViewFiles::remove(view).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_life_begins_a_file_and_later_lives_find_it_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let [golden, home, paused] = ["golden", "home", "paused"].map(|name| directory.path().join(name));
        fs::write(&golden, vec![7; 1 << 20]).unwrap();
        ViewFiles::make(&golden, &home, FREE).unwrap();
        for life in 1..3 * MERGE_AT as u64 {
            write_changes(&home, 1 << 20, &[(life, vec![life as u8; 4096]), (100, vec![life as u8; 4096])]);
            let files = ViewFiles::of(&home).unwrap().unwrap();
            assert!(files.layers().count() <= MERGE_AT);
            ViewFiles::remove(&paused).unwrap();
            files.link(&paused).unwrap();
            ViewFiles::remove(&home).unwrap();
            let kept = ViewFiles::of(&paused).unwrap().unwrap();
            assert!(kept.layers().map(|layer| layer.id).eq(files.layers().map(|layer| layer.id)));
            for _ in 0..2 {
                // As after a resume that failed.
                ViewFiles::remove(&home).unwrap();
                ViewFiles::make(&paused, &home, FREE).unwrap();
            }
            let next = ViewFiles::of(&home).unwrap().unwrap();
            assert!(kept.layers().all(|layer| layer.id != next.own.id));
            assert_eq!(next.own.bytes, 0);

            let shown = shown(&paused);
            assert!(self::shown(&home) == shown, "in life {life}");
            assert_eq!((shown[4096], shown[100 * 4096], shown[101 * 4096]), (1, life as u8, 7));
            assert_eq!(shown[life as usize * 4096], life as u8);
        }
        // One that changed nothing begins none.
        let before = ViewFiles::of(&home).unwrap().unwrap().earlier.len();
        ViewFiles::make(&home, &directory.path().join("two"), FREE).unwrap();
        assert_eq!(ViewFiles::of(&directory.path().join("two")).unwrap().unwrap().earlier.len(), before);
    }

    #[test]
    fn nothing_is_merged_that_there_is_no_room_for() {
        let directory = tempfile::tempdir().unwrap();
        let [golden, home, next] = ["golden", "home", "next"].map(|name| directory.path().join(name));
        fs::write(&golden, vec![7; 1 << 20]).unwrap();
        ViewFiles::make(&golden, &home, FREE).unwrap();
        for life in 0..2 * MERGE_AT as u64 {
            write_changes(&home, 1 << 20, &[(life, vec![life as u8; 4096])]);
            ViewFiles::make(&home, &next, LEFT_FREE).unwrap();
            ViewFiles::remove(&home).unwrap();
            ViewFiles::of(&next).unwrap().unwrap().link(&home).unwrap();
            ViewFiles::remove(&next).unwrap();
        }
        let full = ViewFiles::of(&home).unwrap().unwrap();
        assert_eq!(full.earlier.len(), 2 * MERGE_AT);
        let shown = shown(&home);
        assert!((0..16).all(|life| shown[life * 4096] == life as u8), "all are there");
        ViewFiles::make(&home, &next, FREE).unwrap();
        assert_eq!(ViewFiles::of(&next).unwrap().unwrap().earlier.len(), 1, "once there is");
        assert!(self::shown(&next) == shown);
    }

    /// What the kernel would show of a view.
    fn shown(disk: &Path) -> Vec<u8> {
        let copy = disk.with_extension("copy");
        ViewFiles::of(disk).unwrap().unwrap().copy(&copy).unwrap();
        super::super::flatten(&copy).unwrap();
        let content = fs::read(&copy).unwrap();
        ViewFiles::remove(&copy).unwrap();
        content
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [base, view] = ["base", "view"].map(|name| directory.path().join(name));
        for content in [&[][..], &[1; 1000][..]] {
            fs::write(&base, content).unwrap();
            assert!(ViewFiles::make(&base, &view, FREE).is_err());
        }
        fs::remove_file(&base).unwrap();
        assert!(ViewFiles::make(&base, &view, FREE).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
