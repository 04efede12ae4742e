//! Memory that many machines start from, for a QEMU that must be able to open it for writing: a copy in the
//! host's memory, sealed by the kernel, so that no process whatever can change it. All machines share
//! its pages until they write to their own.

use std::{
    collections::VecDeque,
    fs::{self, File},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use crate::{
    failure::{Doing as _, Failure},
    memory::{Generations, MemoryError},
    snapshot::Snapshot,
};

/// Which file it is a copy of. A snapshot's memory never changes under the same inode and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Source {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Sealed copies, the least recently used go first. What goes stays in memory as long as a
/// machine runs from it.
#[derive(Debug)]
pub struct SealedMemories {
    /// Sum of the sizes of what is kept.
    budget_bytes: u64,
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Clone, Debug)]
struct Kept {
    source: Source,
    bytes: u64,
    memory: Arc<OwnedFd>,
}

impl SealedMemories {
    pub fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, kept: Mutex::default() }
    }

    /// A flat copy of a snapshot's memory; `None` if it is larger than all that may be kept. Blocks, the first time
    /// for as long as reading it takes.
    pub fn get(&self, snapshot: &Snapshot) -> Result<Option<Arc<OwnedFd>>, MemoryError> {
        self.get_by(&snapshot.memory_file(), snapshot.manifest().memory.bytes(), || snapshot.open_memory())
    }

    /// `open` is for when there is no copy yet of the memory that `path` is known by.
    fn get_by(
        &self,
        path: &Path,
        bytes: u64,
        open: impl FnOnce() -> Result<Generations, MemoryError>,
    ) -> Result<Option<Arc<OwnedFd>>, MemoryError> {
        if bytes > self.budget_bytes {
            return Ok(None);
        }
        let metadata = fs::metadata(path).doing(|| format!("looking at {}", path.display()))?;
        let source = Source::of(&metadata);
        // Held while copying: whoever wants the same waits for it instead of making another.
        let mut kept = self.kept();
        let found = kept.iter().position(|one| one.source == source).and_then(|at| kept.remove(at));
        let one = match found {
            Some(one) => one,
            None => Kept { source, bytes, memory: Arc::new(copy_sealed(&open()?)?) },
        };
        kept.push_back(one.clone());
        while kept.iter().map(|one| one.bytes).sum::<u64>() > self.budget_bytes {
            kept.pop_front();
        }
        Ok(Some(one.memory))
    }

    /// Drops the copy of a file, if there is one.
    pub fn forget(&self, path: &Path) -> Result<(), Failure> {
        match fs::metadata(path) {
            Ok(metadata) => {
                let source = Source::of(&metadata);
                self.kept().retain(|one| one.source != source);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure::new(format!("looking at {}", path.display()), error)),
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copy_sealed(from: &Generations) -> Result<OwnedFd, MemoryError> {
    let doing = || "making a file in memory";
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = File::from(memfd_create(c"wrenn-memory", flags).doing(doing)?);
    from.flatten_into(&memory)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(memory.as_fd(), FcntlArg::F_ADD_SEALS(seals)).doing(doing)?;
    Ok(memory.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file_of(byte: u8, size: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![byte; size]).unwrap();
        file
    }

    fn get(memories: &SealedMemories, file: &tempfile::NamedTempFile) -> Option<Arc<OwnedFd>> {
        let bytes = file.as_file().metadata().unwrap().len();
        memories.get_by(file.path(), bytes, || Generations::of_flat(file.path(), None)).unwrap()
    }

    #[test]
    fn one_copy_serves_all_and_nobody_can_write_to_it() {
        let memories = SealedMemories::new(1 << 20);
        let file = file_of(7, 8192);
        let first = get(&memories, &file).unwrap();
        let second = get(&memories, &file).unwrap();
        assert!(Arc::ptr_eq(&first, &second));

        let opened = File::from(first.try_clone().unwrap());
        let mut content = vec![0; 8192];
        opened.read_exact_at(&mut content, 0).unwrap();
        assert!(content == vec![7; 8192]);
        let again = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(super::super::command::path_of(std::os::fd::AsRawFd::as_raw_fd(&*first)));
        let error = again.unwrap().write_all_at(&[1], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert_eq!(opened.set_len(1).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn what_is_forgotten_is_copied_anew_when_it_is_wanted_again() {
        let memories = SealedMemories::new(1 << 20);
        let (file, other) = (file_of(7, 8192), file_of(8, 8192));
        let first = get(&memories, &file).unwrap();
        let kept = get(&memories, &other).unwrap();
        memories.forget(file.path()).unwrap();
        assert_eq!(Arc::strong_count(&first), 1, "only who runs from it holds it");
        assert!(Arc::ptr_eq(&kept, &get(&memories, &other).unwrap()));
        assert!(!Arc::ptr_eq(&first, &get(&memories, &file).unwrap()));
        memories.forget(std::path::Path::new("/nonexistent")).unwrap();
    }

    #[test]
    fn the_least_recently_used_goes_and_what_is_too_large_is_not_kept() {
        let memories = SealedMemories::new(3 << 20);
        let files = [file_of(1, 1 << 20), file_of(2, 1 << 20), file_of(3, 1 << 20), file_of(4, 1 << 20)];
        let first = get(&memories, &files[0]).unwrap();
        let second = get(&memories, &files[1]).unwrap();
        get(&memories, &files[2]).unwrap();
        assert!(Arc::ptr_eq(&first, &get(&memories, &files[0]).unwrap()));
        get(&memories, &files[3]).unwrap();
        assert!(Arc::ptr_eq(&first, &get(&memories, &files[0]).unwrap()));
        assert!(!Arc::ptr_eq(&second, &get(&memories, &files[1]).unwrap()), "was dropped");
        assert!(get(&memories, &file_of(5, 4 << 20)).is_none());
    }
}
