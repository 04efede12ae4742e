//! The guest's users, read from `/etc/passwd` and `/etc/group` as they are at the moment.
//!
//! Not through libc: its lookups load shared objects, which a static binary cannot.

use std::io;
use std::path::Path;

use crate::spawn::Credentials;
use crate::system_files::read_regular;

/// A user that a process can be started as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub home: String,
    pub shell: String,
    pub credentials: Credentials,
}

#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("no user `{0}` in /etc/passwd")]
    Unknown(String),
    #[error("cannot read {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Finds a user by name or by numeric id in the files below `etc`.
///
/// A number without an entry is a user all the same, at home in `/` and in the group of that number.
///
/// # Errors
/// The name is unknown, or `passwd` cannot be read. A missing `group` means no supplementary groups.
pub fn find(etc: &Path, user: &str) -> Result<Account, AccountError> {
    let path = etc.join("passwd");
    let passwd = read_regular(&path)
        .map_err(|source| AccountError::Read { path: path.display().to_string(), source })?;
    let entries = || passwd.lines().filter_map(Entry::parse);
    let number = numeric(user);
    let found = entries()
        .find(|entry| entry.name == user)
        .or_else(|| entries().find(|entry| Some(entry.uid) == number));
    let Some(entry) = found else {
        let id = number.ok_or_else(|| AccountError::Unknown(user.to_owned()))?;
        return Ok(Account {
            name: user.to_owned(),
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
            credentials: Credentials { uid: id, gid: id, groups: Vec::new() },
        });
    };
    let groups = supplementary(&read_regular(&etc.join("group")).unwrap_or_default(), entry.name, entry.gid);
    Ok(Account {
        name: entry.name.to_owned(),
        home: or_default(entry.home, "/"),
        shell: or_default(entry.shell, "/bin/sh"),
        credentials: Credentials { uid: entry.uid, gid: entry.gid, groups },
    })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (numeric(fields.next()?)?, numeric(fields.next()?)?);
        let (_comment, home) = (fields.next()?, fields.next()?);
        let shell = fields.next().unwrap_or_default();
        (!name.is_empty()).then_some(Self { name, uid, gid, home, shell })
    }
}

/// Digits only; the highest number means "no change" to the kernel and is nobody.
fn numeric(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id != u32::MAX)
}

/// The user's own group first, then every group that lists them.
fn supplementary(group: &str, name: &str, own: u32) -> Vec<u32> {
    let mut groups = vec![own];
    for line in group.lines() {
        let mut fields = line.split(':');
        let (_, _, Some(id), Some(members)) = (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if let Some(id) = numeric(id)
            && members.split(',').any(|member| member.trim() == name)
            && !groups.contains(&id)
        {
            groups.push(id);
        }
    }
    groups
}

fn or_default(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> tempfile::TempDir {
        let etc = tempfile::tempdir().expect("a temporary directory");
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# remark\n\nbroken:x:no:1::/:\n\
                      anna:x:1000:1001:Anna:/home/anna:\nfour:x:4294967295:1::/:/bin/sh\n";
        let group =
            "root:x:0:\nanna:x:1001:\naudio:x:29:bob,anna\nvideo:x:44:anna\nbad:x:-1:anna\nbob:x:5:bob\n";
        std::fs::write(etc.path().join("passwd"), passwd).expect("passwd");
        std::fs::write(etc.path().join("group"), group).expect("group");
        etc
    }

    #[test]
    fn by_name_with_all_groups() {
        let anna = find(etc().path(), "anna").expect("anna");
        assert_eq!(anna.home, "/home/anna");
        assert_eq!(anna.shell, "/bin/sh");
        assert_eq!(anna.credentials, Credentials { uid: 1000, gid: 1001, groups: vec![1001, 29, 44] });
    }

    #[test]
    fn by_number() {
        assert_eq!(find(etc().path(), "1000").expect("anna").name, "anna");
        let nobody = find(etc().path(), "4242").expect("a number is a user");
        assert_eq!((nobody.name.as_str(), nobody.home.as_str()), ("4242", "/"));
        assert_eq!(nobody.credentials, Credentials { uid: 4242, gid: 4242, groups: vec![] });
    }

    #[test]
    fn unknown_and_malformed_are_refused() {
        for name in ["bob", "broken", "four", "", "-1", "+0", "4294967295", "99999999999"] {
            assert!(matches!(find(etc().path(), name), Err(AccountError::Unknown(_))), "{name}");
        }
    }

    #[test]
    fn a_pipe_in_the_place_of_passwd_does_not_hang() {
        let etc = tempfile::tempdir().expect("a temporary directory");
        nix::unistd::mkfifo(&etc.path().join("passwd"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        assert!(matches!(find(etc.path(), "root"), Err(AccountError::Read { .. })));
    }
}
