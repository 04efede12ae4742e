//! Names that may become part of a path.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name that may become part of a path: `^[a-z0-9][a-z0-9._-]{0,62}$`, so none can lead elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: a-z, 0-9, '.', '_' and '-', not starting with punctuation, 63 at most")]
pub struct InvalidName(String);

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = (1..=63).contains(&text.len())
            && plain(text.as_bytes()[0])
            && text.bytes().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidName(text.to_owned())) }
    }
}

impl TryFrom<&str> for Name {
    type Error = InvalidName;

    fn try_from(text: &str) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_elsewhere() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "cl-2e5glxi4g3qnhwci95qev0cg0", "py3.12_slim", "a..b", &longest] {
            assert_eq!(good.parse::<Name>().unwrap().as_ref(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", ".", "..", ".a", "-a", "_a", "a/b", "../a", "a\0b", "A", "ä", "a b", "a\n", &too_long]
        {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName(bad.to_owned())));
        }
        assert!(serde_json::from_str::<Name>("\"../etc\"").is_err());
    }
}
