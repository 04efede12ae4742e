//! What a guest may reach outside: addresses and names, allowed and denied.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Entries of both lists together: each is looked at for every name that the guest asks for.
pub const MAX_EGRESS_ENTRIES: usize = 256;

/// Bounds of RFC 1035, section 2.3.4.
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 253;

/// A capsule's egress policy. The default lets everything pass that any guest may reach.
///
/// `allow` goes before `deny`, and `deny_all` leaves nothing but what `allow` names. What no guest may reach stays out of
/// reach whatever is allowed. Answers of connections that were allowed pass. Name servers may be asked unless
/// `deny_all` is set and no host name is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressPolicy {
    deny_all: bool,
    allow: Vec<Destination>,
    deny: Vec<Destination>,
}

/// One entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    Range(Ipv4Range),
    Host(HostPattern),
}

/// An address, or all addresses with the same first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Range {
    first: Ipv4Addr,
    length: u8,
}

/// A host name, or every name below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// The name itself is not meant, all below it are.
    below: bool,
    /// In lower case, without a dot at its end.
    name: String,
}

/// What a policy says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameVerdict {
    /// May be looked up, and what it stands for may be reached.
    Allowed,
    /// May be looked up.
    Unnamed,
    Denied,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEgress {
    #[error("{entry:?} in `{list}` cannot be a destination: {reason}")]
    Entry {
        /// `allow` or `deny`.
        list: &'static str,
        entry: String,
        reason: InvalidDestination,
    },
    #[error("an egress policy has {MAX_EGRESS_ENTRIES} entries at most, not {0}")]
    TooMany(usize),
}

/// Why a text is no destination, and what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDestination {
    #[error("a range is an IPv4 address and a length from 0 to 32, as in 203.0.113.0/24")]
    Range,
    #[error("it is not the first address of its range, which is {0}")]
    InsideRange(Ipv4Range),
    #[error("capsules speak IPv4 only")]
    Ipv6,
    #[error("it is neither an IPv4 address, as 203.0.113.7, nor a host name")]
    Number,
    #[error("`*` stands for the first labels of a name, as in *.example.com, and nowhere else")]
    Wildcard,
    #[error("an international name is written in its ASCII form, which begins with xn--")]
    NotAscii,
    #[error(
        "a host name is made of letters, digits, `-` and `_`, {MAX_LABEL} at most between dots and {MAX_NAME} in all, \
         as in api.example.com"
    )]
    Name,
}

impl EgressPolicy {
    /// Checks both lists; the error names the first bad entry.
    pub fn new(
        deny_all: bool,
        allow: &[impl AsRef<str>],
        deny: &[impl AsRef<str>],
    ) -> Result<Self, InvalidEgress> {
        let entries = allow.len() + deny.len();
        if entries > MAX_EGRESS_ENTRIES {
            return Err(InvalidEgress::TooMany(entries));
        }
        Ok(Self { deny_all, allow: parse("allow", allow)?, deny: parse("deny", deny)? })
    }

    /// Nothing is denied that is not denied to every guest.
    pub fn is_open(&self) -> bool {
        !self.deny_all && self.deny.is_empty()
    }

    pub fn denies_all(&self) -> bool {
        self.deny_all
    }

    /// Whether what the guest looks up matters.
    pub fn names_hosts(&self) -> bool {
        self.allows_hosts() || hosts(&self.deny).next().is_some()
    }

    /// Whether what can be reached depends on what the guest looks up.
    pub fn allows_hosts(&self) -> bool {
        hosts(&self.allow).next().is_some()
    }

    pub(super) fn allowed_ranges(&self) -> Vec<Ipv4Range> {
        outermost(&self.allow)
    }

    pub(super) fn denied_ranges(&self) -> Vec<Ipv4Range> {
        outermost(&self.deny)
    }

    /// Of a name, given by its labels.
    pub fn judge(&self, labels: &[&[u8]]) -> NameVerdict {
        if hosts(&self.allow).any(|host| host.matches(labels)) {
            NameVerdict::Allowed
        } else if self.deny_all || hosts(&self.deny).any(|host| host.matches(labels)) {
            NameVerdict::Denied
        } else {
            NameVerdict::Unnamed
        }
    }
}

fn parse(list: &'static str, entries: &[impl AsRef<str>]) -> Result<Vec<Destination>, InvalidEgress> {
    let parse = |entry: &str| {
        entry.parse().map_err(|reason| InvalidEgress::Entry { list, entry: entry.to_owned(), reason })
    };
    entries.iter().map(|entry| parse(entry.as_ref())).collect()
}

fn hosts(list: &[Destination]) -> impl Iterator<Item = &HostPattern> {
    list.iter().filter_map(|entry| match entry {
        Destination::Host(host) => Some(host),
        Destination::Range(_) => None,
    })
}

/// The ranges of a list without those that lie in another one: a packet filter's set has no two that overlap.
fn outermost(list: &[Destination]) -> Vec<Ipv4Range> {
    let mut ranges: Vec<Ipv4Range> = list
        .iter()
        .filter_map(|entry| match entry {
            Destination::Range(range) => Some(*range),
            Destination::Host(_) => None,
        })
        .collect();
    ranges.sort_by_key(|range| (range.first, range.length));
    let mut kept: Vec<Ipv4Range> = Vec::new();
    for range in ranges {
        // Two ranges never overlap in part, and the outer one sorts first.
        if kept.last().is_none_or(|last| !last.contains(range.first)) {
            kept.push(range);
        }
    }
    kept
}

impl Ipv4Range {
    pub fn first(&self) -> Ipv4Addr {
        self.first
    }

    /// How many bits all addresses in it share.
    pub fn length(&self) -> u8 {
        self.length
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        masked(address, self.length) == self.first
    }
}

fn masked(address: Ipv4Addr, length: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, length } = self;
        if *length == 32 { first.fmt(f) } else { write!(f, "{first}/{length}") }
    }
}

impl FromStr for Ipv4Range {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let digits = length.bytes().all(|byte| byte.is_ascii_digit());
        let length = length.parse().ok().filter(|length| digits && *length <= 32);
        let (Ok(address), Some(length)) = (address.parse(), length) else {
            return Err(InvalidDestination::Range);
        };
        let range = Self { first: masked(address, length), length };
        if range.first == address { Ok(range) } else { Err(InvalidDestination::InsideRange(range)) }
    }
}

impl HostPattern {
    /// Whether a name, given by its labels, is meant.
    pub fn matches(&self, labels: &[&[u8]]) -> bool {
        let own = self.name.split('.').count();
        let long_enough = if self.below { labels.len() > own } else { labels.len() == own };
        // By labels and not by text: a label may have a dot in it.
        let same = |(own, label): (&str, &&[u8])| label.eq_ignore_ascii_case(own.as_bytes());
        long_enough && self.name.rsplit('.').zip(labels.iter().rev()).all(same)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

impl FromStr for HostPattern {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        if !text.is_ascii() {
            return Err(InvalidDestination::NotAscii);
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if name.contains('*') {
            return Err(InvalidDestination::Wildcard);
        }
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let sound = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(of_name)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > MAX_NAME || !name.split('.').all(sound) {
            return Err(InvalidDestination::Name);
        }
        // No top-level domain is a number: this is an address with a mistake in it.
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(InvalidDestination::Number);
        }
        Ok(Self { below, name })
    }
}

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        let address = text.split('/').next().unwrap_or_default();
        if address.parse::<Ipv6Addr>().is_ok() {
            Err(InvalidDestination::Ipv6)
        } else if address.parse::<Ipv4Addr>().is_ok() {
            text.parse().map(Self::Range)
        } else {
            text.parse().map(Self::Host)
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => range.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = InvalidDestination;

    fn try_from(text: String) -> Result<Self, InvalidDestination> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(deny_all: bool, allow: &[&str], deny: &[&str]) -> EgressPolicy {
        EgressPolicy::new(deny_all, allow, deny).unwrap()
    }

    fn judge(policy: &EgressPolicy, name: &str) -> NameVerdict {
        policy.judge(&name.split('.').map(str::as_bytes).collect::<Vec<_>>())
    }

    #[test]
    fn allow_goes_before_deny_and_deny_all_leaves_what_is_allowed() {
        let lists = (["API.example.com.", "*.good.example"], ["*.example.com", "bad.good.example"]);
        let open = policy(false, &lists.0, &lists.1);
        let closed = policy(true, &lists.0, &lists.1);
        for (name, in_open, in_closed) in [
            ("api.EXAMPLE.com", NameVerdict::Allowed, NameVerdict::Allowed),
            ("www.example.com", NameVerdict::Denied, NameVerdict::Denied),
            ("example.com", NameVerdict::Unnamed, NameVerdict::Denied),
            ("a.b.good.example", NameVerdict::Allowed, NameVerdict::Allowed),
            ("good.example", NameVerdict::Unnamed, NameVerdict::Denied),
            ("bad.good.example", NameVerdict::Allowed, NameVerdict::Allowed),
            ("evilgood.example", NameVerdict::Unnamed, NameVerdict::Denied),
        ] {
            assert_eq!((judge(&open, name), judge(&closed, name)), (in_open, in_closed), "{name}");
        }
    }

    #[test]
    fn a_dot_within_a_label_makes_no_other_name() {
        let policy = policy(true, &["*.example.com", "www.example.com"], &[]);
        assert_eq!(policy.judge(&[b"evil.example", b"com"]), NameVerdict::Denied);
        assert_eq!(policy.judge(&[b"www.example", b"com"]), NameVerdict::Denied);
        assert_eq!(policy.judge(&[b"x.example.com"]), NameVerdict::Denied);
        assert_eq!(policy.judge(&[]), NameVerdict::Denied);
    }

    #[test]
    fn each_bad_entry_is_named_with_what_is_wrong() {
        use InvalidDestination as Bad;
        let within: Ipv4Range = "10.0.0.0/8".parse().unwrap();
        let long = format!("{}.com", "a".repeat(64));
        for (entry, wanted) in [
            ("", Bad::Name),
            ("10.1.2.3/8", Bad::InsideRange(within)),
            ("10.0.0.0/33", Bad::Range),
            ("10.0.0.0/+8", Bad::Range),
            ("10.0.0.0/8/8", Bad::Range),
            ("https://example.com", Bad::Name),
            ("2001:db8::/32", Bad::Ipv6),
            ("example.com:443", Bad::Name),
            ("300.1.1.1", Bad::Number),
            ("1.2.3", Bad::Number),
            ("*", Bad::Wildcard),
            ("a.*.com", Bad::Wildcard),
            ("*.*.com", Bad::Wildcard),
            ("bücher.example", Bad::NotAscii),
            ("exa mple.com", Bad::Name),
            ("-a.com", Bad::Name),
            ("a..com", Bad::Name),
            (long.as_str(), Bad::Name),
        ] {
            let error = EgressPolicy::new(false, &["ok.example"], &[entry]).unwrap_err();
            let expected = InvalidEgress::Entry { list: "deny", entry: entry.to_owned(), reason: wanted };
            assert_eq!(error, expected, "{entry}");
            assert!(error.to_string().contains(&format!("{entry:?} in `deny`")), "{error}");
        }
        let many = vec!["a.com"; MAX_EGRESS_ENTRIES];
        assert!(EgressPolicy::new(false, &many, &[] as &[&str]).is_ok());
        assert_eq!(EgressPolicy::new(false, &many, &["b.com"]), Err(InvalidEgress::TooMany(257)));
    }

    #[test]
    fn ranges_that_lie_in_others_are_left_out() {
        let policy =
            policy(false, &[], &["1.2.3.4", "1.2.0.0/16", "a.com", "1.2.3.0/24", "1.3.0.0/16", "1.2.3.4"]);
        let ranges: Vec<String> = policy.denied_ranges().iter().map(Ipv4Range::to_string).collect();
        assert_eq!(ranges, ["1.2.0.0/16", "1.3.0.0/16"]);
        let everything = self::policy(false, &["9.9.9.9"], &["0.0.0.0/0", "8.8.8.8"]);
        assert_eq!(everything.denied_ranges().len(), 1);
        assert!(everything.denied_ranges()[0].contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn a_policy_survives_a_record_and_a_damaged_one_does_not() {
        let written = policy(true, &["*.example.com", "203.0.113.0/24"], &["198.51.100.7"]);
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<EgressPolicy>(&text).unwrap(), written);
        assert_eq!(serde_json::from_str::<EgressPolicy>("{}").unwrap(), EgressPolicy::default());
        assert!(serde_json::from_str::<EgressPolicy>(r#"{"allow":["1.2.3"]}"#).is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "[a-z0-9*./_:-]{0,24}") {
            if let Ok(destination) = text.parse::<Destination>() {
                prop_assert_eq!(destination.to_string().parse::<Destination>(), Ok(destination));
            }
        }
    }
}
