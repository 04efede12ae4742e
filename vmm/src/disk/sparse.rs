//! Copies that keep holes.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use nix::{errno::Errno, fcntl::copy_file_range};

use super::extents::data_ranges;
use crate::failure::{Doing as _, Failure};

/// A copy of the same content: data is copied, holes stay holes. Not synced.
pub fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let source = File::open(from).doing(|| format!("opening {}", from.display()))?;
    let target = create(to)?;
    let size = source.metadata().doing(|| format!("looking at {}", from.display()))?.len();
    copy_data(&source, &target, size)
        .and_then(|()| target.set_len(size))
        .doing(|| format!("copying {} to {}", from.display(), to.display()))
}

/// An empty file that only root can open.
pub(super) fn create(path: &Path) -> Result<File, Failure> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .doing(|| format!("creating {}", path.display()))
}

fn copy_data(source: &File, target: &File, size: u64) -> io::Result<()> {
    let mut in_kernel = true;
    for (mut position, end) in data_ranges(source, size)? {
        while position < end {
            let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(64 << 20);
            position += if in_kernel {
                let (mut from, mut to) = (position.cast_signed(), position.cast_signed());
                match copy_file_range(source.as_fd(), Some(&mut from), target.as_fd(), Some(&mut to), length)
                {
                    // The file has become shorter.
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(copied) => copied as u64,
                    // Between file systems, or on one that cannot.
                    Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                        in_kernel = false;
                        0
                    }
                    Err(errno) => return Err(errno.into()),
                }
            } else {
                copy_through_memory(source, target, position, length.min(1 << 20))?
            };
        }
    }
    Ok(())
}

fn copy_through_memory(source: &File, target: &File, position: u64, length: usize) -> io::Result<u64> {
    let mut buffer = vec![0; length];
    source.read_exact_at(&mut buffer, position)?;
    target.write_all_at(&buffer, position)?;
    Ok(length as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn sparse_file(at: &Path) -> Vec<u8> {
        let mut content = vec![0; 8 << 20];
        let file = File::create(at).unwrap();
        for (start, length) in [(0, 4096), (1 << 20, 100_000), ((8 << 20) - 4096, 1)] {
            content[start..start + length].fill(7);
            file.write_all_at(&content[start..start + length], start as u64).unwrap();
        }
        file.set_len(content.len() as u64).unwrap();
        content
    }

    #[test]
    fn a_copy_has_the_same_content_and_the_same_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let content = sparse_file(&from);
        copy(&from, &to).unwrap();
        assert!(fs::read(&to).unwrap() == content);
        let used = |path: &Path| fs::metadata(path).unwrap().blocks();
        assert!(used(&to) <= used(&from), "{} blocks of {}", used(&to), used(&from));
    }

    #[test]
    fn a_copy_to_another_file_system_has_the_same_content() {
        let directory = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let (from, to) = (directory.path().join("from"), other.path().join("to"));
        let content = sparse_file(&from);
        copy(&from, &to).unwrap();
        assert!(fs::read(&to).unwrap() == content);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }
}
