//! Makes an ext4 file system out of a directory, without mounting anything, the same bytes every time.
//!
//! `mke2fs -d` copies the directory in order of names; its UUID, hash seed and clock can be given. What it copies
//! besides, and nobody can choose on the host, are the times of last access and change of each file: those are
//! set afterwards by `debugfs`. Extended attributes and hard links are kept.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use crate::{
    error::{At, Error, Result},
    image::tree,
    tool::Tool,
};

/// The same clock for mke2fs and resize2fs, in seconds since 1970.
const CLOCK: &str = "E2FSPROGS_FAKE_TIME";
/// Where mke2fs looks for the host's taste in file systems. With no such file it uses what it was built with.
const CONFIG: (&str, &str) = ("MKE2FS_CONFIG", "/nonexistent");
const BLOCK: u64 = 4096;
/// Bytes of disk for each inode, mke2fs's default; it stays when the file system grows.
const INODE_RATIO: u64 = 16384;
/// For the file system's own structures, before it is shrunk.
const ROOM: u64 = 256 << 20;

/// What is not in the files.
pub struct Filesystem {
    pub uuid: &'static str,
    /// Decides the order of names in large directories.
    pub hash_seed: &'static str,
    /// When everything in it was made, read and changed, in seconds since 1970.
    pub epoch: u64,
}

/// Which mke2fs this host has: another may lay the same files out differently.
pub fn tool_version() -> Result<String> {
    // It says so on stderr.
    let said = Tool::new("mke2fs").arg("-V").run()?.stderr;
    Ok(String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned())
}

/// Writes the file system to `image`, as small as it can be.
pub fn make(tree: &Path, image: &Path, filesystem: &Filesystem) -> Result<()> {
    let clock = filesystem.epoch.to_string();
    let paths = tree::walk(tree)?;
    Tool::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"])
        .args(["-b", &BLOCK.to_string(), "-i", &INODE_RATIO.to_string(), "-U", filesystem.uuid])
        .args([
            "-E",
            &format!("lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={}", filesystem.hash_seed),
        ])
        .arg("-d")
        .arg(tree)
        .arg(image)
        .arg(ample_blocks(&paths)?.to_string())
        .env(CLOCK, &clock)
        .env(CONFIG.0, CONFIG.1)
        .run()?;
    Tool::new("resize2fs").arg("-M").arg(image).env(CLOCK, &clock).run()?;
    set_times(tree, &paths, image, filesystem.epoch)?;
    Tool::new("e2fsck").args(["-f", "-n"]).arg(image).run()?;
    Ok(())
}

/// More than the content takes, and not a size that depends on where the tree happens to be.
fn ample_blocks(paths: &[PathBuf]) -> Result<u64> {
    let mut blocks = 0;
    for path in paths {
        blocks += fs::symlink_metadata(path).at("look at", path)?.size().div_ceil(BLOCK) + 1;
    }
    let inodes = paths.len() as u64 * INODE_RATIO / BLOCK;
    Ok(blocks.max(inodes) * 5 / 4 + ROOM / BLOCK)
}

fn set_times(tree: &Path, paths: &[PathBuf], image: &Path, epoch: u64) -> Result<()> {
    let script = image.with_extension("debugfs");
    fs::write(&script, times_script(tree, paths, epoch)?).at("write", &script)?;
    let output = Tool::new("debugfs").arg("-w").arg("-f").arg(&script).arg(image).run();
    fs::remove_file(&script).at("remove", &script)?;
    // It succeeds whatever its commands did; of those, only errors go to stderr, after its own name.
    let said = String::from_utf8_lossy(&output?.stderr).into_owned();
    match said.lines().find(|line| !line.starts_with("debugfs ")) {
        Some(first) => Err(Error::Times { said: first.to_owned() }),
        None => Ok(()),
    }
}

/// One command a line; a name is quoted, and a quote in it doubled.
fn times_script(tree: &Path, paths: &[PathBuf], epoch: u64) -> Result<Vec<u8>> {
    let mut script = format!("set_current_time @{epoch}\n").into_bytes();
    for path in paths {
        let name = path.strip_prefix(tree).unwrap_or(path).as_os_str().as_bytes();
        if name.contains(&b'\n') {
            return Err(Error::FileName { name: path.clone() });
        }
        for time in ["atime", "ctime"] {
            script.extend_from_slice(b"set_inode_field \"/");
            for byte in name {
                script.extend(std::iter::repeat_n(*byte, if *byte == b'"' { 2 } else { 1 }));
            }
            script.extend_from_slice(format!("\" {time} @{epoch}\n").as_bytes());
        }
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        time::{Duration, SystemTime},
    };

    use super::*;

    const SAMPLE: Filesystem = Filesystem {
        uuid: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0003",
        hash_seed: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0004",
        epoch: 1_793_491_200,
    };

    /// The same files, made in an order of the caller's.
    fn make_tree(tree: &Path, backwards: bool) {
        let mut names: Vec<String> = (0..300).map(|i| format!("many/file-{i}")).collect();
        names.extend(["a name with spaces", "a \"quoted\" name", "umlaut-ü", "empty"].map(str::to_owned));
        if backwards {
            names.reverse();
        }
        fs::create_dir_all(tree.join("many")).unwrap();
        for name in &names {
            fs::write(tree.join(name), name.repeat(name.len())).unwrap();
        }
        fs::hard_link(tree.join("many/file-0"), tree.join("hard-link")).unwrap();
        symlink("many/file-1", tree.join("link")).unwrap();
        for path in tree::walk(tree).unwrap() {
            tree::limit_time(&path, SAMPLE.epoch).unwrap();
        }
    }

    /// Waits until the clock that files are stamped with has gone on by more than the second that ext4's older
    /// fields are exact to.
    fn wait_for_another_second(dir: &Path) {
        let stamp = |name: &str| {
            fs::write(dir.join(name), name).unwrap();
            fs::metadata(dir.join(name)).unwrap().modified().unwrap()
        };
        let first = stamp("first");
        let deadline = SystemTime::now() + Duration::from_secs(10);
        while stamp("second").duration_since(first).unwrap_or_default() < Duration::from_millis(1100) {
            assert!(SystemTime::now() < deadline, "the clock of the file system stands still");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn the_same_files_made_at_another_time_in_another_order_are_the_same_bytes() {
        assert!(nix::unistd::geteuid().is_root(), "this test must run as root: debugfs and owners need it");
        let dir = tempfile::tempdir().unwrap();
        let image = |name: &str, backwards| {
            let tree = dir.path().join(name);
            make_tree(&tree, backwards);
            let image = dir.path().join(format!("{name}.ext4"));
            make(&tree, &image, &SAMPLE).unwrap();
            fs::read(image).unwrap()
        };
        let first = image("one", false);
        wait_for_another_second(dir.path());
        let second = image("another-place", true);
        assert!(
            first == second,
            "the images differ at byte {:?}",
            first.iter().zip(&second).position(|(a, b)| a != b)
        );
        assert!(first.len() < 32 << 20, "not shrunk: {} bytes", first.len());
    }

    #[test]
    fn an_image_has_the_trees_content_and_the_epochs_times() {
        assert!(nix::unistd::geteuid().is_root(), "this test must run as root: debugfs and owners need it");
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        make_tree(&tree, false);
        let image = dir.path().join("image");
        make(&tree, &image, &SAMPLE).unwrap();
        let ask = |request: &str| Tool::new("debugfs").arg("-R").arg(request).arg(&image).text().unwrap();
        for path in ["/many/file-7", "\"/a \"\"quoted\"\" name\"", "/many"] {
            let stat = ask(&format!("stat {path}"));
            for time in ["atime", "ctime", "mtime", "crtime"] {
                assert!(stat.contains(&format!("{time}: 0x{:08x}:00000000", SAMPLE.epoch)), "{path}: {stat}");
            }
        }
        assert_eq!(ask("cat \"/a name with spaces\""), "a name with spaces".repeat(18));
        assert!(ask("stat /hard-link").contains("Links: 2"));
        assert!(ask("stat /link").contains("many/file-1"));
    }

    #[test]
    fn a_name_with_a_line_break_is_refused() {
        let refused = times_script(Path::new("/t"), &[PathBuf::from("/t/a\nb")], 0);
        assert!(matches!(refused, Err(Error::FileName { .. })));
    }
}
