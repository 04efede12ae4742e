//! The wire forms of ids: a prefix that says what kind of thing it names, then its 16 bytes as 25
//! characters of lowercase base-36. One type per kind, so that a team never passes for a template.
//!
//! A path is only ever made from an id that came through here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters of base-36 that hold 128 bits.
const DIGITS: usize = 25;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("`{text}` is not a {kind} id: it does not begin with `{prefix}`")]
    Prefix { kind: &'static str, prefix: &'static str, text: String },
    #[error("`{text}` is not a {kind} id: `{prefix}` and 25 of the characters 0-9a-z are wanted")]
    Digits { kind: &'static str, prefix: &'static str, text: String },
}

fn decode(kind: &'static str, prefix: &'static str, text: &str) -> Result<u128, IdError> {
    let shown = || text.chars().take(64).collect::<String>();
    let digits = text.strip_prefix(prefix).ok_or_else(|| IdError::Prefix { kind, prefix, text: shown() })?;
    let wrong = || IdError::Digits { kind, prefix, text: shown() };
    if digits.len() != DIGITS {
        return Err(wrong());
    }
    digits.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return Err(wrong()),
        };
        value.checked_mul(36).and_then(|v| v.checked_add(u128::from(digit))).ok_or_else(wrong)
    })
}

fn encode(prefix: &str, value: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut digits = [b'0'; DIGITS];
    let mut rest = value;
    for place in digits.iter_mut().rev() {
        *place = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
        rest /= 36;
    }
    f.write_str(prefix)?;
    digits.iter().try_for_each(|digit| fmt::Write::write_char(f, char::from(*digit)))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// The 16 bytes, big-endian, as the database has them.
            pub const fn from_u128(value: u128) -> Self {
                Self(value)
            }

            pub const fn as_u128(self) -> u128 {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                decode($kind, $prefix, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                encode($prefix, self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(/** A capsule, `cl-…`. */ CapsuleId, "capsule", "cl-");
id!(/** A template, `tpl-…`. */ TemplateId, "template", "tpl-");
id!(/** A team, `team-…`. */ TeamId, "team", "team-");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_the_way_there_and_back() {
        for value in [0, 1, 35, 36, u128::from(u64::MAX), u128::MAX] {
            let id = CapsuleId::from_u128(value);
            assert_eq!(id.to_string().len(), 28);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn the_largest_value_is_the_last_that_parses() {
        let largest = CapsuleId::from_u128(u128::MAX).to_string();
        assert_eq!(largest, "cl-f5lxx1zz5pnorynqglhzmsp33");
        let beyond = format!("{}4", &largest[..largest.len() - 1]);
        assert!(matches!(beyond.parse::<CapsuleId>(), Err(IdError::Digits { .. })));
    }

    #[test]
    fn another_kind_is_refused_by_its_prefix() {
        let error = TemplateId::from_u128(7).to_string().parse::<CapsuleId>().unwrap_err();
        assert!(matches!(error, IdError::Prefix { kind: "capsule", .. }), "{error}");
    }

    #[test]
    fn what_could_make_a_path_is_refused() {
        for text in [
            "",
            "cl-",
            "cl-../../etc/passwd",
            "cl-00000000000000000000000A0",
            "cl-0000000000000000000000000\n",
        ] {
            assert!(text.parse::<CapsuleId>().is_err(), "{text:?}");
        }
    }
}
