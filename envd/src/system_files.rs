//! Reading and writing the small files of a system that its own root may have tampered with.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// More than this of a file is not read, in bytes.
const MOST: u64 = 1 << 20;

/// The text of a regular file; what is not UTF-8 is replaced.
///
/// # Errors
/// It cannot be opened or read, or is something else: opening a pipe would wait for ever.
pub fn read_regular(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces a file by a rename, unless it already has this content. One of the same length is overwritten
/// where it lies: that touches no block of the disk, and takes a tenth of the time just after a restore.
///
/// Not flushed: what is written this way is made again after the next restore.
///
/// # Errors
/// The old file is as it was, and nothing else is left.
pub fn replace(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    match read_regular(path) {
        Ok(old) if old == content => return Ok(()),
        Ok(old) if old.len() == content.len() => return overwrite(path, content),
        _ => {}
    }
    let aside = path.with_extension("wrenn-new");
    // Left by an earlier life that ended in between.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let write = |mut file: File| {
        file.write_all(content.as_bytes())?;
        file.set_permissions(Permissions::from_mode(mode))?;
        fs::rename(&aside, path)
    };
    write(file).inspect_err(|_| {
        let _ = fs::remove_file(&aside);
    })
}

/// The same number of bytes over a regular file, in one write to its page.
fn overwrite(path: &Path, content: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    file.write_all_at(content.as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn replaced_whole_and_only_when_different() {
        let etc = tempfile::tempdir().expect("a directory");
        let path = etc.path().join("machine-id");
        replace(&path, "one\n", 0o444).expect("first");
        let first = fs::metadata(&path).expect("metadata");
        assert_eq!(first.permissions().mode() & 0o777, 0o444);
        replace(&path, "one\n", 0o444).expect("same");
        assert_eq!(fs::metadata(&path).expect("metadata").ino(), first.ino());
        replace(&path, "two\n", 0o444).expect("of the same length");
        assert_eq!(fs::read_to_string(&path).expect("read"), "two\n");
        assert_eq!(fs::metadata(&path).expect("metadata").ino(), first.ino());
        fs::write(path.with_extension("wrenn-new"), "left over").expect("left over");
        replace(&path, "three\n", 0o444).expect("second");
        assert_eq!(fs::read_to_string(&path).expect("read"), "three\n");
        assert_eq!(fs::read_dir(etc.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let etc = tempfile::tempdir().expect("a directory");
        fs::create_dir(etc.path().join("hosts")).expect("in the way");
        assert!(replace(&etc.path().join("hosts"), "x", 0o644).is_err());
        assert_eq!(fs::read_dir(etc.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_pipe_does_not_hang() {
        let etc = tempfile::tempdir().expect("a directory");
        let path = etc.path().join("passwd");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        assert_eq!(read_regular(&path).expect_err("refused").kind(), io::ErrorKind::InvalidInput);
    }
}
