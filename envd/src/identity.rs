//! Who this copy of the machine is: checked first, then told to the kernel and written to `/etc`.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use wrenn_proto::envd::v1::Identity;

use crate::launch::Invalid;
use crate::system::System;
use crate::system_files::{self, read_regular};

/// The address that Debian, too, gives a host's own name.
const OWN_ADDRESS: &str = "127.0.1.1";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot set the host name")]
    Hostname(#[source] io::Error),
    #[error("cannot write {path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Checks that every part of an identity can be used.
///
/// # Errors
/// Names the part that cannot.
pub fn check(identity: &Identity) -> Result<(), Invalid> {
    let invalid = |field, message: String| Err(Invalid { field, message });
    for (field, id) in
        [("identity.capsule_id", &identity.capsule_id), ("identity.template_id", &identity.template_id)]
    {
        let fits = (1..=64).contains(&id.len())
            && id.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-');
        if !fits {
            return invalid(field, format!("`{}` is not an id", id.escape_default()));
        }
    }
    // One label of RFC 1123.
    let name = &identity.hostname;
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !fits {
        return invalid("identity.hostname", format!("`{}` is not a host name", name.escape_default()));
    }
    let id = &identity.machine_id;
    if id.len() != 32 || !id.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f')) {
        let message = "a machine id is 32 lowercase hexadecimal digits".to_owned();
        return invalid("identity.machine_id", message);
    }
    Ok(())
}

/// Nobody's, of the length that every capsule's has: what replaces it is written over it.
#[must_use]
pub fn placeholder() -> Identity {
    let zeros = |length| "0".repeat(length);
    let capsule_id = format!("cl-{}", zeros(25));
    Identity {
        hostname: capsule_id.clone(),
        capsule_id,
        template_id: format!("tpl-{}", zeros(25)),
        machine_id: zeros(32),
    }
}

/// Makes the machine be `identity`. What already is as it should be is not written again.
///
/// # Errors
/// Says what could not be done; what was done before stays.
pub fn apply(identity: &Identity, system: &dyn System) -> Result<(), IdentityError> {
    let etc = system.etc();
    system.set_hostname(&identity.hostname).map_err(IdentityError::Hostname)?;
    replace(&etc.join("hostname"), &format!("{}\n", identity.hostname), 0o644)?;
    let hosts = read_regular(&etc.join("hosts")).unwrap_or_else(|_| "127.0.0.1\tlocalhost\n".to_owned());
    replace(&etc.join("hosts"), &with_own_name(&hosts, &identity.hostname), 0o644)?;
    replace(&etc.join("machine-id"), &format!("{}\n", identity.machine_id), 0o444)
}

/// Checks the addresses of name servers.
///
/// # Errors
/// One of them is not an IPv4 address.
pub fn check_name_servers(servers: &[String], field: &'static str) -> Result<Vec<Ipv4Addr>, Invalid> {
    let parse = |it: &String| {
        it.parse().map_err(|_| Invalid {
            field,
            message: format!("`{}` is not an IPv4 address", it.escape_default()),
        })
    };
    servers.iter().map(parse).collect()
}

/// Writes `resolv.conf`; nothing if there are no servers.
///
/// # Errors
/// The file cannot be written.
pub fn set_name_servers(servers: &[Ipv4Addr], system: &dyn System) -> Result<(), IdentityError> {
    if servers.is_empty() {
        return Ok(());
    }
    let lines: String = servers.iter().map(|it| format!("nameserver {it}\n")).collect();
    replace(&system.etc().join("resolv.conf"), &lines, 0o644)
}

/// The file with one line for the own name, in the place where it was or at the end.
fn with_own_name(hosts: &str, name: &str) -> String {
    let own = format!("{OWN_ADDRESS}\t{name}");
    let mut placed = false;
    let mut lines = Vec::new();
    for line in hosts.lines() {
        if line.split_whitespace().next() != Some(OWN_ADDRESS) {
            lines.push(line);
        } else if !placed {
            placed = true;
            lines.push(&own);
        }
    }
    if !placed {
        lines.push(&own);
    }
    lines.join("\n") + "\n"
}

fn replace(path: &Path, content: &str, mode: u32) -> Result<(), IdentityError> {
    system_files::replace(path, content, mode)
        .map_err(|source| IdentityError::Write { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            capsule_id: "cl-2e5glxi4g3qnhwci95qev0cg0".into(),
            template_id: "tpl-2e5glxi4g3qnhwci95qev0cg0".into(),
            hostname: "capsule-7".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
        }
    }

    #[test]
    fn each_part_is_checked() {
        assert!(check(&identity()).is_ok());
        let field = |it: &Identity| check(it).expect_err("must be refused").field;
        for id in ["", "cl 1", "cl\n", &"a".repeat(65)] {
            assert_eq!(field(&Identity { capsule_id: id.into(), ..identity() }), "identity.capsule_id");
            assert_eq!(field(&Identity { template_id: id.into(), ..identity() }), "identity.template_id");
        }
        for name in ["", "-a", "a-", "a.b", "a b", "a\n127.0.0.1 x", &"a".repeat(64)] {
            assert_eq!(field(&Identity { hostname: name.into(), ..identity() }), "identity.hostname");
        }
        for id in ["", "0123", &"g".repeat(32), &"A".repeat(32)] {
            assert_eq!(field(&Identity { machine_id: id.into(), ..identity() }), "identity.machine_id");
        }
    }

    #[test]
    fn the_own_name_has_one_line() {
        let before = "127.0.0.1\tlocalhost\n127.0.1.1\told\n::1\tlocalhost\n127.0.1.1 older\n";
        let after = "127.0.0.1\tlocalhost\n127.0.1.1\tnew\n::1\tlocalhost\n";
        assert_eq!(with_own_name(before, "new"), after);
        assert_eq!(with_own_name(after, "new"), after);
        assert_eq!(with_own_name("", "new"), "127.0.1.1\tnew\n");
    }
}
