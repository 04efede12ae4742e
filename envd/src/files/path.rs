//! From the text of a request to a path that can be used.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::files::error::{FileError, Problem, Target};
use crate::launch::Invalid;

/// `PATH_MAX` of linux/limits.h, without the terminating null.
const LONGEST: usize = 4095;

/// The absolute path that was asked for: from the root, or from the user's home, which is also `~`. Without `.` and needless
/// slashes; `..` stays, since only the file system knows where it leads.
///
/// # Errors
/// The text is empty, too long, or contains a null character.
pub fn absolute(asked: &str, home: &str, field: &'static str) -> Result<Target, Invalid> {
    let invalid = |message: &str| Invalid { field, message: message.to_owned() };
    if asked.is_empty() {
        return Err(invalid("no path given"));
    }
    if asked.contains('\0') {
        return Err(invalid("contains a null character"));
    }
    // A home that is no absolute path is the fault of whoever wrote it into passwd.
    let home = Path::new("/").join(home.replace('\0', ""));
    let from = match asked.strip_prefix('~') {
        Some(below) if below.is_empty() || below.starts_with('/') => home.join(below.trim_start_matches('/')),
        _ => home.join(asked),
    };
    let path: PathBuf = from.components().filter(|it| !matches!(it, Component::CurDir)).collect();
    if path.as_os_str().len() > LONGEST {
        return Err(invalid(&format!("longer than {LONGEST} bytes")));
    }
    Ok(Target { field, path })
}

/// The directory that a path's last name is an entry of, and the name.
///
/// # Errors
/// The path is the root, or ends in `..`.
pub fn split(target: &Target) -> Result<(&Path, &OsStr), FileError> {
    match (target.path.parent(), target.path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(target.is(Problem::NoName)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(asked: &str) -> PathBuf {
        absolute(asked, "/home/anna", "path").expect("a path").path
    }

    #[test]
    fn from_the_root_or_the_home() {
        for (asked, expected) in [
            ("/", "/"),
            ("/etc//passwd/", "/etc/passwd"),
            ("a/./b", "/home/anna/a/b"),
            (".", "/home/anna"),
            ("../bob", "/home/anna/../bob"),
            ("~", "/home/anna"),
            ("~//x/", "/home/anna/x"),
            ("~bob", "/home/anna/~bob"),
            ("a/~/b", "/home/anna/a/~/b"),
            ("./~/b", "/home/anna/~/b"),
            ("/..", "/.."),
        ] {
            assert_eq!(path(asked), Path::new(expected), "{asked}");
        }
        assert_eq!(absolute("x", "not/absolute", "path").expect("a path").path, Path::new("/not/absolute/x"));
    }

    #[test]
    fn what_cannot_be_a_path_is_refused() {
        for bad in ["", "a\0b", &"a/".repeat(4096)] {
            assert_eq!(absolute(bad, "/", "from").expect_err("must be refused").field, "from");
        }
    }

    #[test]
    fn only_names_can_be_split_off() {
        let target = |asked| absolute(asked, "/", "path").expect("a path");
        assert_eq!(split(&target("/a/b")).expect("a name"), (Path::new("/a"), OsStr::new("b")));
        for nameless in ["/", "/a/..", ".."] {
            assert!(matches!(
                split(&target(nameless)),
                Err(FileError::Unfit { problem: Problem::NoName, .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_path_is_absolute_and_short(asked in any::<String>(), home in any::<String>()) {
            if let Ok(Target { path, .. }) = absolute(&asked, &home, "path") {
                prop_assert!(path.is_absolute());
                prop_assert!(path.as_os_str().len() <= LONGEST);
                prop_assert!(!path.as_os_str().as_encoded_bytes().contains(&0));
            }
        }
    }
}
