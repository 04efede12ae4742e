//! From the disk of one capsule to an image that others are made of.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::{fs::fchown, process::ExitStatusExt as _},
    },
    path::Path,
};

use tokio::sync::Mutex;

use super::{DiskError, sparse};
use crate::{
    failpoint,
    failure::{Doing as _, Failure, blocking},
    network::NOBODYS_UID,
    paths::{create_directory, partial, remove_any, sync_directory, template_record, write_atomically},
    process::tool::{self, FILE},
};

/// The programs are all of one user, who must not have two teams' disks at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Exit codes of e2fsck, bits of one number: it found errors and corrected them.
const CORRECTED: i32 = 1;

/// Makes a disk that is a plain file and belongs to no machine as small as the file system on it can be. That is put in
/// order first, as after a power failure: it was in use. An error leaves the disk useless.
pub async fn compact(disk: &Path) -> Result<(), DiskError> {
    let _turn = TURN.lock().await;
    let disk = disk.to_owned();
    blocking(move || {
        let doing = || format!("giving {} away", disk.display());
        let file = OpenOptions::new().read(true).write(true).open(&disk).doing(doing)?;
        fchown(file.as_fd(), Some(NOBODYS_UID), Some(NOBODYS_UID)).doing(doing)?;
        let compacted = check_and_shrink(&file);
        fchown(file.as_fd(), Some(0), Some(0)).doing(|| format!("taking {} back", disk.display()))?;
        compacted
    })
    .await
}

fn check_and_shrink(file: &File) -> Result<(), DiskError> {
    run("e2fsck", &["-f", "-y", FILE], file, CORRECTED)?;
    run("resize2fs", &["-M", FILE], file, 0)?;
    // What it passes through the second time is in order; then free blocks become holes.
    run("e2fsck", &["-f", "-y", "-E", "discard", FILE], file, 0)
}

/// `fine`: bits of the exit code that are no failure.
fn run(program: &'static str, arguments: &[&str], file: &File, fine: i32) -> Result<(), DiskError> {
    let ended = tool::run(program, arguments, file, NOBODYS_UID)?;
    match ended.status.code() {
        Some(code) if code & !fine == 0 => Ok(()),
        Some(_) => Err(DiskError::FileSystem { program, output: ended.words }),
        None => {
            let signal = ended.status.signal().unwrap_or_default();
            let output = format!("it was ended by signal {signal}; its last words: {}", ended.words);
            Err(DiskError::Tool { program, output })
        }
    }
}

/// Makes a disk at rest the image at `image`: its directory, with `record` beside it, becomes visible complete or not at
/// all, and stays through a power failure.
pub async fn publish(disk: &Path, image: &Path, record: &[u8]) -> Result<(), DiskError> {
    let (disk, image, record) = (disk.to_owned(), image.to_owned(), record.to_owned());
    blocking(move || {
        let Some((directory, name)) = image.parent().zip(image.file_name()) else {
            let invalid = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(Failure::new(format!("making the image {}", image.display()), invalid).into());
        };
        let staged = partial(directory);
        let written = stage(&disk, &staged, &staged.join(name), &record).and_then(|()| {
            let doing = || format!("renaming {} to {}", staged.display(), directory.display());
            fs::rename(&staged, directory).doing(doing)?;
            Ok(sync_directory(directory.parent().unwrap_or(Path::new("/"))).doing(doing)?)
        });
        if written.is_err()
            && let Err(error) = remove_any(&staged)
        {
            tracing::warn!(path = %staged.display(), %error, "half an image is left");
        }
        written
    })
    .await
}

fn stage(disk: &Path, staged: &Path, image: &Path, record: &[u8]) -> Result<(), DiskError> {
    remove_any(staged).doing(|| format!("removing the leftover {}", staged.display()))?;
    create_directory(staged, 0o700)?;
    sparse::copy(disk, image)?;
    failpoint!(blocking "flatten.copied")?;
    let doing = || format!("syncing {}", image.display());
    File::open(image).and_then(|file| file.sync_all()).doing(doing)?;
    write_atomically(&template_record(staged), record).doing(|| "writing the image's record")?;
    Ok(failpoint!(blocking "flatten.written")?)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, process::Command};

    use super::*;

    fn must(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A file system of 512 MiB with a little in it, and the unused rest of it full of noise.
    fn disk(directory: &Path) -> std::path::PathBuf {
        assert!(nix::unistd::geteuid().is_root(), "only root can become somebody else");
        let (tree, disk) = (directory.join("tree"), directory.join("disk"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("kept"), "kept ".repeat(1 << 18)).unwrap();
        let [tree, path] = [&tree, &disk].map(|path| path.to_str().unwrap());
        must("mke2fs", &["-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, path, "512M"]);
        let noise = directory.join("noise");
        fs::write(&noise, vec![0xa5; 100 << 20]).unwrap();
        must("debugfs", &["-w", "-R", &format!("write {} noise", noise.display()), path]);
        must("debugfs", &["-w", "-R", "rm noise", path]);
        disk
    }

    fn allocated(path: &Path) -> u64 {
        fs::metadata(path).unwrap().blocks() * 512
    }

    #[tokio::test]
    async fn a_disk_becomes_as_small_as_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(directory.path());
        let path = disk.to_str().unwrap();
        // As of a machine that was in use.
        must("debugfs", &["-w", "-R", "dirty", path]);
        let before = allocated(&disk);
        compact(&disk).await.unwrap();
        let metadata = fs::metadata(&disk).unwrap();
        assert!(metadata.len() < 64 << 20, "{} bytes", metadata.len());
        assert!(before > 100 << 20 && allocated(&disk) < 16 << 20, "{} of {before}", allocated(&disk));
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
        must("e2fsck", &["-f", "-n", path]);
        assert_eq!(must("debugfs", &["-R", "cat kept", path]), "kept ".repeat(1 << 18));
    }

    #[tokio::test]
    async fn a_disk_without_a_file_system_is_told_from_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        fs::write(&disk, vec![0xa5; 1 << 20]).unwrap();
        match compact(&disk).await {
            Err(DiskError::FileSystem { program: "e2fsck", output }) => {
                assert!(output.contains("Bad magic number"), "{output}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_image_is_visible_with_its_record_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let (disk, image) = (directory.path().join("disk"), directory.path().join("team/tpl-1/rootfs.ext4"));
        fs::write(&disk, "content").unwrap();
        // Of an agent that was killed.
        fs::create_dir_all(directory.path().join("team/tpl-1.partial/rootfs.ext4")).unwrap();
        publish(&disk, &image, b"{}").await.unwrap();
        assert_eq!(fs::read(&image).unwrap(), b"content");
        let place = image.parent().unwrap();
        assert_eq!(fs::read(template_record(place)).unwrap(), b"{}");
        assert_eq!(fs::metadata(place).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1);
        publish(&disk, &image, b"{}").await.unwrap_err();
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1, "nothing half made is left");
    }
}
