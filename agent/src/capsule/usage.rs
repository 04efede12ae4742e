//! What files really take on the disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of all files of a directory, without those below it; blocks that several files share count for each.
pub fn allocated_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let blocks = entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks());
    // The unit of st_blocks, whatever the file system's own.
    blocks.sum::<u64>() * 512
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
}
