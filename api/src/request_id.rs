//! The id that follows a request through the log, to the host and into the capsule.

use axum::http::HeaderValue;
use uuid::Uuid;
use wrenn_schema::access::RequestId;

/// Longest id that is taken over from a client.
const MAX_LENGTH: usize = 64;

/// The client's own id where it is harmless in logs and headers (letters, digits, `-_.`), else a new one.
pub fn accept(offered: Option<&HeaderValue>) -> RequestId {
    offered
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=MAX_LENGTH).contains(&id.len()) && id.bytes().all(is_harmless))
        .map_or_else(fresh, |id| RequestId(id.to_owned()))
}

/// A new id.
pub fn fresh() -> RequestId {
    RequestId(Uuid::now_v7().to_string())
}

fn is_harmless(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_ids_are_taken_over() {
        let accepted = |value: &'static str| accept(Some(&HeaderValue::from_static(value))).0;
        assert_eq!(accepted("build-7_a.B"), "build-7_a.B");
        for odd in [
            "",
            "a b",
            "a\tb",
            "\"",
            "{}",
            "0123456789012345678901234567890123456789012345678901234567890123x",
        ] {
            assert_ne!(accepted(odd), odd);
            assert!(Uuid::parse_str(&accepted(odd)).is_ok());
        }
        assert!(Uuid::parse_str(&accept(None).0).is_ok());
    }
}
