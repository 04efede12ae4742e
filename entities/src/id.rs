//! Typed ids: one type for each kind of thing, a UUID in the database, a prefix and base-36 on the wire.
//!
//! The wire form is the prefix, a dash and the 16 bytes as one big-endian number in exactly 25 lowercase base-36
//! digits (36²⁵ is just above 2¹²⁸, so 25 digits always suffice and a few numbers of 25 digits are too large).

use std::fmt;

use uuid::Uuid;

/// Digits of the wire form after the prefix and the dash.
pub const DIGITS: usize = 25;

/// Why a text is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("an id that begins with `{expected}-` is wanted, `{given}` begins otherwise")]
    Prefix { expected: &'static str, given: String },
    #[error("an id is `{prefix}-` and {DIGITS} characters; `{given}` has {length} after the dash")]
    Length { prefix: &'static str, given: String, length: usize },
    #[error("an id has only the digits 0-9 and a-z after the dash; `{given}` has `{found}`")]
    Digit { given: String, found: char },
    #[error("`{given}` is larger than any id")]
    Overflow { given: String },
}

/// What all ids have in common.
pub trait TypedId:
    Copy + Eq + fmt::Display + std::str::FromStr<Err = IdError> + From<Uuid> + Into<Uuid>
{
    /// What the wire form begins with, without the dash.
    const PREFIX: &'static str;

    /// A new one, ordered by time (UUID version 7).
    #[must_use]
    fn generate() -> Self {
        Uuid::now_v7().into()
    }
}

fn encode(prefix: &str, id: Uuid, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut number = id.as_u128();
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        let value = (number % 36) as u8;
        *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
        number /= 36;
    }
    write!(f, "{prefix}-{}", std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
}

fn decode(prefix: &'static str, text: &str) -> Result<Uuid, IdError> {
    // What is quoted back is bounded: the text comes from outside.
    let given = || text.chars().take(64).collect::<String>();
    let digits = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('-'))
        .ok_or_else(|| IdError::Prefix { expected: prefix, given: given() })?;
    let length = digits.chars().count();
    if length != DIGITS {
        return Err(IdError::Length { prefix, given: given(), length });
    }
    let mut number = 0u128;
    for found in digits.chars() {
        let value = match found {
            '0'..='9' => found as u8 - b'0',
            'a'..='z' => found as u8 - b'a' + 10,
            _ => return Err(IdError::Digit { given: given(), found }),
        };
        number = number
            .checked_mul(36)
            .and_then(|n| n.checked_add(u128::from(value)))
            .ok_or_else(|| IdError::Overflow { given: given() })?;
    }
    Ok(Uuid::from_u128(number))
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, sea_orm::DeriveValueType)]
        pub struct $name(pub Uuid);

        impl TypedId for $name {
            const PREFIX: &'static str = $prefix;
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                encode(Self::PREFIX, self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                decode(Self::PREFIX, text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        // The ORM wants this of every primary key, for databases that number rows themselves.
        impl sea_orm::TryFromU64 for $name {
            fn try_from_u64(_: u64) -> Result<Self, sea_orm::DbErr> {
                Err(sea_orm::DbErr::ConvertFromU64(stringify!($name)))
            }
        }
    };
}

typed_id!(
    /// A capsule.
    CapsuleId, "cl");
typed_id!(
    /// What capsules start from.
    TemplateId, "tpl");
typed_id!(
    /// A tenant.
    TeamId, "team");
typed_id!(
    /// A person.
    UserId, "user");
typed_id!(
    /// An API key (not its secret).
    ApiKeyId, "key");
typed_id!(
    /// A machine that runs capsules.
    HostId, "host");
typed_id!(
    /// A recipe being turned into a template.
    BuildId, "bld");

impl TeamId {
    /// The team that owns what the platform itself provides.
    pub const PLATFORM: Self = Self(Uuid::nil());
}

impl TemplateId {
    /// The built-in `minimal` template.
    pub const MINIMAL: Self = Self(Uuid::nil());

    /// Whether it is one of those that `wrenn-rootfs` makes images of. They have the lowest numbers, which no new id
    /// ever has: that begins with the time.
    #[must_use]
    pub fn is_built_in(self) -> bool {
        self.0.as_u128() <= 0xff
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_width_is_fixed_and_the_extremes_fit() {
        assert_eq!(CapsuleId(Uuid::nil()).to_string(), "cl-0000000000000000000000000");
        assert_eq!(TeamId(Uuid::max()).to_string(), "team-f5lxx1zz5pnorynqglhzmsp33");
        assert_eq!("team-f5lxx1zz5pnorynqglhzmsp33".parse(), Ok(TeamId(Uuid::max())));
    }

    #[test]
    fn no_new_template_is_built_in() {
        assert!(TemplateId::MINIMAL.is_built_in());
        assert!("tpl-0000000000000000000000002".parse::<TemplateId>().unwrap().is_built_in());
        assert!(!TemplateId::generate().is_built_in());
    }

    #[test]
    fn each_mistake_is_named() {
        let prefix = "tpl-0000000000000000000000000".parse::<CapsuleId>().unwrap_err();
        assert_eq!(
            prefix.to_string(),
            "an id that begins with `cl-` is wanted, `tpl-0000000000000000000000000` begins otherwise"
        );
        assert!(matches!("cl-00".parse::<CapsuleId>(), Err(IdError::Length { length: 2, .. })));
        assert!(matches!("cl0000".parse::<CapsuleId>(), Err(IdError::Prefix { .. })));
        assert!(matches!(
            "cl-000000000000000000000000A".parse::<CapsuleId>(),
            Err(IdError::Digit { found: 'A', .. })
        ));
        assert!(matches!("cl-f5lxx1zz5pnorynqglhzmsp34".parse::<CapsuleId>(), Err(IdError::Overflow { .. })));
        assert!(matches!("cl-zzzzzzzzzzzzzzzzzzzzzzzzz".parse::<CapsuleId>(), Err(IdError::Overflow { .. })));
    }

    #[test]
    fn a_long_text_is_not_quoted_whole() {
        let error = "x".repeat(10_000).parse::<HostId>().unwrap_err();
        assert!(error.to_string().len() < 200, "{error}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: [u8; 16]) {
            let id = TemplateId(Uuid::from_bytes(bytes));
            let text = id.to_string();
            prop_assert_eq!(text.len(), "tpl-".len() + DIGITS);
            prop_assert_eq!(text.parse::<TemplateId>(), Ok(id));
        }

        #[test]
        fn order_on_the_wire_is_order_of_the_ids(a: u128, b: u128) {
            let (a, b) = (HostId(Uuid::from_u128(a)), HostId(Uuid::from_u128(b)));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let parsed = text.parse::<CapsuleId>();
            prop_assert!(parsed.is_err() || parsed.is_ok_and(|id| id.to_string() == text));
        }

        #[test]
        fn another_kind_is_refused(bytes: [u8; 16]) {
            let text = ApiKeyId(Uuid::from_bytes(bytes)).to_string();
            let refused = matches!(text.parse::<UserId>(), Err(IdError::Prefix { expected: "user", .. }));
            prop_assert!(refused);
        }
    }
}
