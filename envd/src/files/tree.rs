//! The directories of one watch: the kernel tells numbers, a caller wants paths.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::sys::inotify::WatchDescriptor;

/// Directories by their number. Each knows only its own name, so that a move of one moves all below it.
#[derive(Debug)]
pub struct Tree {
    top: PathBuf,
    nodes: HashMap<WatchDescriptor, Node>,
}

#[derive(Debug)]
struct Node {
    /// Absent at the top.
    parent: Option<WatchDescriptor>,
    name: OsString,
}

impl Tree {
    pub fn new(top: PathBuf) -> Self {
        Self { top, nodes: HashMap::new() }
    }

    pub fn top(&self) -> &Path {
        &self.top
    }

    /// How many directories.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn contains(&self, directory: WatchDescriptor) -> bool {
        self.nodes.contains_key(&directory)
    }

    pub fn is_top(&self, directory: WatchDescriptor) -> bool {
        self.nodes.get(&directory).is_some_and(|it| it.parent.is_none())
    }

    /// Puts a directory in, or moves it with all below it.
    pub fn place(&mut self, directory: WatchDescriptor, parent: Option<WatchDescriptor>, name: &OsStr) {
        self.nodes.insert(directory, Node { parent, name: name.to_owned() });
    }

    /// Where a directory is; nothing if it is not known.
    pub fn path(&self, directory: WatchDescriptor) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut next = directory;
        // Each step goes up one directory; more steps than directories would be a circle.
        for _ in 0..=self.nodes.len() {
            let node = self.nodes.get(&next)?;
            let Some(parent) = node.parent else {
                let mut path = self.top.clone();
                path.extend(names.into_iter().rev());
                return Some(path);
            };
            names.push(&node.name);
            next = parent;
        }
        None
    }

    pub fn child(&self, parent: WatchDescriptor, name: &OsStr) -> Option<WatchDescriptor> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, it)| it.parent == Some(parent) && it.name == name).map(|(&directory, _)| directory)
    }

    pub fn forget(&mut self, directory: WatchDescriptor) {
        self.nodes.remove(&directory);
    }

    /// Takes a directory and all below it out.
    pub fn cut(&mut self, directory: WatchDescriptor) -> Vec<WatchDescriptor> {
        let mut taken = vec![directory];
        let mut done = 0;
        while let Some(&parent) = taken.get(done) {
            taken.extend(self.nodes.iter().filter(|(_, it)| it.parent == Some(parent)).map(|(&it, _)| it));
            self.nodes.remove(&parent);
            done += 1;
        }
        taken
    }

    /// Takes all out.
    pub fn clear(&mut self) -> Vec<WatchDescriptor> {
        self.nodes.drain().map(|(directory, _)| directory).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    #[test]
    fn a_move_takes_along_what_is_below() {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
        let directories = tempfile::tempdir().expect("a directory");
        let number = |name: &str| {
            let path = directories.path().join(name);
            std::fs::create_dir(&path).expect("a directory");
            inotify.add_watch(&path, AddWatchFlags::IN_CREATE).expect("a watch")
        };
        let (top, a, b, c) = (number("top"), number("a"), number("b"), number("c"));
        let mut tree = Tree::new("/top".into());
        tree.place(top, None, OsStr::new(""));
        tree.place(a, Some(top), OsStr::new("a"));
        tree.place(b, Some(a), OsStr::new("b"));
        tree.place(c, Some(b), OsStr::new("c"));
        assert_eq!(tree.path(c).as_deref(), Some(Path::new("/top/a/b/c")));
        tree.place(b, Some(top), OsStr::new("moved"));
        assert_eq!(tree.path(c).as_deref(), Some(Path::new("/top/moved/c")));
        assert_eq!(tree.child(top, OsStr::new("moved")), Some(b));
        assert_eq!(tree.child(a, OsStr::new("b")), None);
        // What can only come of lost events still has an end.
        tree.place(b, Some(c), OsStr::new("circle"));
        assert_eq!(tree.path(b), None);
        tree.place(b, Some(top), OsStr::new("b"));
        assert_eq!(tree.cut(b), [b, c]);
        assert_eq!((tree.count(), tree.path(c)), (2, None));
    }
}
