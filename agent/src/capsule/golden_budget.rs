//! How much disk the golden snapshots take, and which of them go first.
//!
//! When one was used last is the time of change of its directory, so that it outlives the agent.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::usage::allocated_bytes;

/// A golden snapshot on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Golden {
    pub path: PathBuf,
    pub bytes: u64,
    pub used_at: SystemTime,
}

/// Somebody starts from it now.
pub fn mark_used(directory: &Path) {
    // Without it only the order of going is another.
    let _unmarked = File::open(directory).and_then(|file| file.set_modified(SystemTime::now()));
}

/// All golden snapshots of one template.
pub fn list(template: &Path) -> Vec<Golden> {
    directories(template)
        // What is not complete, or is being removed, has a name with an ending.
        .filter(|path| path.extension().is_none())
        .filter_map(|path| {
            let used_at = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok()?;
            Some(Golden { bytes: allocated_bytes(&path), used_at, path })
        })
        .collect()
}

/// Those of all templates.
pub fn list_below(root: &Path) -> Vec<Golden> {
    directories(root).flat_map(|template| list(&template)).collect()
}

fn directories(of: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

/// Those to be removed for the others to fit, the least recently used first. The one used last stays, however large
/// it is.
pub fn surplus(mut all: Vec<Golden>, budget_bytes: u64) -> Vec<Golden> {
    all.sort_by_key(|golden| golden.used_at);
    let Some(last) = all.pop() else { return Vec::new() };
    let mut total = last.bytes + all.iter().map(|golden| golden.bytes).sum::<u64>();
    let goes = all.into_iter().take_while(|golden| {
        let beyond = total > budget_bytes;
        total -= golden.bytes;
        beyond
    });
    goes.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn golden(name: &str, bytes: u64, age: u64) -> Golden {
        let used_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
        Golden { path: name.into(), bytes, used_at }
    }

    fn names(goldens: &[Golden]) -> Vec<&str> {
        goldens.iter().map(|golden| golden.path.to_str().unwrap()).collect()
    }

    #[test]
    fn the_least_recently_used_go_until_the_rest_fits() {
        let all = vec![golden("new", 10, 1), golden("oldest", 10, 30), golden("old", 10, 20)];
        assert!(surplus(all.clone(), 30).is_empty());
        assert_eq!(names(&surplus(all.clone(), 29)), ["oldest"]);
        assert_eq!(names(&surplus(all.clone(), 19)), ["oldest", "old"]);
        assert_eq!(names(&surplus(all, 0)), ["oldest", "old"], "the last one stays");
        assert!(surplus(Vec::new(), 0).is_empty());
    }

    #[test]
    fn use_is_remembered_on_the_disk_and_unfinished_ones_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tpl-1/1-256-1024-a", "tpl-1/1-512-1024-a", "tpl-2/1-256-1024-a", "tpl-2/b.partial"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            let old = SystemTime::now() - Duration::from_secs(3600);
            File::open(dir.path().join(name)).unwrap().set_modified(old).unwrap();
        }
        mark_used(&dir.path().join("tpl-1/1-512-1024-a"));
        let mut all = list_below(dir.path());
        assert_eq!(all.len(), 3);
        all.sort_by_key(|golden| golden.used_at);
        assert!(all[2].path.ends_with("tpl-1/1-512-1024-a"));
    }
}
