//! What a capsule may reach outside, as it is asked for. Checked here for its form; its host carries it out.

use std::net::{IpAddr, Ipv4Addr};

use async_graphql::InputObject;
use wrenn_proto::agent::v1 as agent;

use crate::Error;

const FIELD: &str = "egress";
/// Entries of both lists together.
const ENTRIES: usize = 256;
/// Bytes of a host name, and of one label of it (RFC 1035).
const HOST_NAME: usize = 253;
const LABEL: usize = 63;

/// What the capsule may reach outside. What no capsule may reach (its host and the host's networks, other capsules,
/// link-local addresses) stays out of reach whatever is allowed here.
#[derive(InputObject, Clone, Debug, Default)]
pub struct EgressPolicyInput {
    /// Nothing but what `allow` names.
    deny_all: Option<bool>,
    /// IPv4 addresses, CIDRs, and host names, `*.example.com` standing for every name below. They go before `deny`.
    allow: Option<Vec<String>>,
    deny: Option<Vec<String>>,
}

impl EgressPolicyInput {
    /// The policy in the contract's form.
    pub(super) fn check(self) -> Result<agent::EgressPolicy, Error> {
        let (allow, deny) = (self.allow.unwrap_or_default(), self.deny.unwrap_or_default());
        let entries = allow.len() + deny.len();
        if entries > ENTRIES {
            return Err(Error::invalid(
                FIELD,
                format!("an egress policy has {ENTRIES} entries at most, not {entries}"),
            ));
        }
        for entry in allow.iter().chain(&deny) {
            destination(entry).map_err(|wrong| {
                let shown = entry.chars().take(64).collect::<String>();
                Error::invalid(FIELD, format!("`{shown}` {wrong}"))
            })?;
        }
        Ok(agent::EgressPolicy { deny_all: self.deny_all.unwrap_or(false), allow, deny })
    }
}

/// Whether an entry is something that traffic can go to; else what is wrong with it.
fn destination(entry: &str) -> Result<(), &'static str> {
    const FORMS: &str =
        "is no IPv4 address (10.1.2.3), CIDR (10.0.0.0/8) or host name (example.com, *.example.com)";
    let address = entry.split_once('/').map_or(entry, |(address, _)| address);
    if matches!(address.parse::<IpAddr>(), Ok(IpAddr::V6(_))) {
        return Err("is an IPv6 address; capsules have IPv4 only");
    }
    if let Some((address, bits)) = entry.split_once('/') {
        address.parse::<Ipv4Addr>().map_err(|_| FORMS)?;
        let digits = (1..=2).contains(&bits.len()) && bits.bytes().all(|byte| byte.is_ascii_digit());
        return match bits.parse::<u8>() {
            Ok(0..=32) if digits => Ok(()),
            _ => Err("has no length of a prefix from 0 to 32 after the `/`"),
        };
    }
    if entry.parse::<Ipv4Addr>().is_ok() || is_host_name(entry.strip_prefix("*.").unwrap_or(entry)) {
        return Ok(());
    }
    Err(FORMS)
}

fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What ends in a number is an address that was mistyped.
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= HOST_NAME && name.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for good in [
            "10.1.2.3",
            "0.0.0.0/0",
            "10.0.0.0/8",
            "192.168.1.1/32",
            "example.com",
            "*.example.com",
            "a-b.c_d.example",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(destination(good), Ok(()), "{good}");
        }
        let long = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            " ",
            "*",
            "*.",
            "*example.com",
            "a.*.example",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.256",
            "1.2.3",
            "::1",
            "fe80::/10",
            "example.com.",
            ".example.com",
            "-a.example",
            "a b.example",
            "example.com/8",
            "http://example.com",
            "example.com:443",
            "ä.example",
            &long,
        ] {
            assert!(destination(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mistake_names_the_entry() {
        let policy = |allow: Vec<String>| EgressPolicyInput { allow: Some(allow), ..Default::default() };
        let error = policy(vec!["ok.example".into(), "10.0.0.0/99".into()]).check().expect_err("is refused");
        assert_eq!(error.field(), Some("egress"));
        assert!(error.to_string().contains("`10.0.0.0/99`"), "{error}");
        let error = policy(vec!["a.example".into(); 257]).check().expect_err("is refused");
        assert!(error.to_string().contains("256"), "{error}");
    }
}
