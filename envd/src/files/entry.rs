//! What is told of one file: made from the kernel's answer, with names for the ids.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstatat};
use wrenn_proto::envd::v1::{FileEntry, FileKind};

use crate::files::error::{FileError, Target};
use crate::system_files::read_regular;

/// The permission bits of a mode.
pub const PERMISSIONS: u32 = 0o7777;

pub fn kind(stat: &FileStat) -> FileKind {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

/// The entry of what `name` in a directory is; `target` is its absolute path. A link is not followed.
///
/// # Errors
/// It is not there, or may not be looked at.
pub fn look(directory: impl AsFd, name: &OsStr, target: &Target) -> Result<FileEntry, FileError> {
    let directory = directory.as_fd();
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(target.cannot("look at"))?;
    let mut entry = describe(&target.path, &stat);
    if kind(&stat) == FileKind::Symlink {
        // Gone meanwhile, or its target may not be read: still a link.
        let aim = readlinkat(directory, name).ok();
        entry.symlink_target = aim.map(|it| it.to_string_lossy().into_owned());
    }
    Ok(entry)
}

/// Owner and group are decimal until [`name_owners`]. What is not UTF-8 is replaced: the contract has strings, and
/// one odd name must not hide its whole directory.
pub fn describe(path: &Path, stat: &FileStat) -> FileEntry {
    let nanoseconds = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec);
    FileEntry {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        path: path.to_string_lossy().into_owned(),
        kind: kind(stat).into(),
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        mode: stat.st_mode & PERMISSIONS,
        owner: stat.st_uid.to_string(),
        group: stat.st_gid.to_string(),
        modified_at_ns: nanoseconds,
        symlink_target: None,
        children: Vec::new(),
    }
}

/// Puts names in the place of the ids that `passwd` and `group` know.
pub fn name_owners(entries: &mut [FileEntry], etc: &Path) {
    let (mut users, mut groups) = (HashSet::new(), HashSet::new());
    each(entries, &mut |it| {
        users.insert(it.owner.clone());
        groups.insert(it.group.clone());
    });
    let users = names(&etc.join("passwd"), &users);
    let groups = names(&etc.join("group"), &groups);
    each(entries, &mut |it| {
        if let Some(name) = users.get(&it.owner) {
            it.owner.clone_from(name);
        }
        if let Some(name) = groups.get(&it.group) {
            it.group.clone_from(name);
        }
    });
}

fn each(entries: &mut [FileEntry], visit: &mut impl FnMut(&mut FileEntry)) {
    for entry in entries {
        visit(entry);
        each(&mut entry.children, visit);
    }
}

/// The names of those ids that are asked for, in one pass: a guest's `passwd` may be of any length.
fn names(file: &Path, wanted: &HashSet<String>) -> HashMap<String, String> {
    let text = read_regular(file).unwrap_or_default();
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        // Name, password, id: the same in both files.
        if let (Some(name), Some(_), Some(id)) = (fields.next(), fields.next(), fields.next())
            && !name.is_empty()
            && wanted.contains(id)
        {
            names.entry(id.to_owned()).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_get_their_names_at_every_depth() {
        let etc = tempfile::tempdir().expect("a directory");
        std::fs::write(etc.path().join("passwd"), "anna:x:7:8::/:\nlater:x:7:8::/:\n:x:9:9::/:\n")
            .expect("passwd");
        std::fs::write(etc.path().join("group"), "staff:x:8:\n").expect("group");
        let entry = |owner: &str, children| FileEntry {
            owner: owner.into(),
            group: "8".into(),
            children,
            ..Default::default()
        };
        let mut entries = [entry("9", vec![entry("7", vec![])])];
        name_owners(&mut entries, etc.path());
        let [outer] = &entries;
        assert_eq!((outer.owner.as_str(), outer.group.as_str()), ("9", "staff"));
        assert_eq!(outer.children[0].owner, "anna");
    }
}
