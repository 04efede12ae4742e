//! What files really take on the disk.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of all files of a directory, without those below it; blocks that several files share count for each.
pub fn allocated_bytes(directory: &Path) -> u64 {
    bytes_of(directory, |_| true)
}

/// As [`allocated_bytes`], without files that have other names elsewhere.
pub fn own_bytes(directory: &Path) -> u64 {
    bytes_of(directory, |metadata| metadata.nlink() == 1)
}

fn bytes_of(directory: &Path, counts: impl Fn(&Metadata) -> bool) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| entry.metadata().ok()).filter(|metadata| !metadata.is_dir());
    // The unit of st_blocks, whatever the file system's own.
    files.filter(counts).map(|metadata| metadata.blocks() * 512).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("memory")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(allocated_bytes(dir.path()) < 1 << 20);
        std::fs::write(dir.path().join("state"), vec![1; 1 << 20]).unwrap();
        std::fs::File::open(dir.path().join("state")).unwrap().sync_all().unwrap();
        assert!(allocated_bytes(dir.path()) >= 1 << 20);
        assert_eq!(allocated_bytes(&dir.path().join("nothing")), 0);
    }

    #[test]
    fn what_has_another_name_is_not_a_directorys_own() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("snapshot");
        std::fs::create_dir(&snapshot).unwrap();
        for name in ["shared", "own"] {
            std::fs::write(snapshot.join(name), vec![1; 1 << 20]).unwrap();
            std::fs::File::open(snapshot.join(name)).unwrap().sync_all().unwrap();
        }
        std::fs::hard_link(snapshot.join("shared"), dir.path().join("elsewhere")).unwrap();
        assert_eq!(allocated_bytes(&snapshot), 2 << 20);
        assert_eq!(own_bytes(&snapshot), 1 << 20);
    }
}
