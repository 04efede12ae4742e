//! Who may call what: the token, fixed once in each life of the machine.

use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// The shortest token accepted, in bytes.
pub const SHORTEST_TOKEN: usize = 16;

/// Allowed to everybody whose address is: it tells nothing and changes nothing.
const OPEN: &str = "/wrenn.envd.v1.Guest/Health";
/// Allowed while there is no token: the calls that fix it, and the flush before the snapshot that every
/// capsule starts from, which must not contain one.
const UNTIL_FIXED: [&str; 3] = [
    "/wrenn.envd.v1.Guest/Configure",
    "/wrenn.envd.v1.Guest/PostRestore",
    "/wrenn.envd.v1.Guest/PrepareSnapshot",
];

/// The capsule's token, once it has one.
#[derive(Debug, Default)]
pub struct Access {
    token: Mutex<Option<Box<[u8]>>>,
}

impl Access {
    fn token(&self) -> MutexGuard<'_, Option<Box<[u8]>>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the token is fixed.
    pub fn is_fixed(&self) -> bool {
        self.token().is_some()
    }

    /// Whether `token` may be given to [`Access::fix`]. An empty one may, and fixes nothing.
    ///
    /// # Errors
    /// It is too short, or another one is fixed.
    pub fn check(&self, token: &[u8]) -> Result<(), Status> {
        check_length(token)?;
        match &*self.token() {
            Some(fixed) if !token.is_empty() && !bool::from(fixed.ct_eq(token)) => {
                Err(Status::permission_denied("another token is fixed"))
            }
            _ => Ok(()),
        }
    }

    /// Fixes a token that was checked. The first stays.
    pub fn fix(&self, token: &[u8]) {
        if !token.is_empty() {
            self.token().get_or_insert_with(|| token.into());
        }
    }

    /// Begins another life with a token of its own, whose length was checked: a machine that was restored from another
    /// one's snapshot has that one's token. An empty one changes nothing.
    pub fn rotate(&self, token: &[u8]) {
        if !token.is_empty() {
            *self.token() = Some(token.into());
        }
    }

    /// Whether a call to `path` with these headers is let in.
    ///
    /// # Errors
    /// Unauthenticated, without saying more than whether a token is fixed.
    pub fn admit(&self, path: &str, headers: &HeaderMap) -> Result<(), Status> {
        if path == OPEN || UNTIL_FIXED.contains(&path) && !self.is_fixed() {
            return Ok(());
        }
        let given = headers.get(wrenn_proto::TOKEN).and_then(|it| decode(it.as_bytes()));
        self.admit_token(&given.unwrap_or_default())
    }

    /// Whether somebody with this token is let in.
    ///
    /// # Errors
    /// As of [`Access::admit`].
    pub fn admit_token(&self, given: &[u8]) -> Result<(), Status> {
        match self.token().as_deref() {
            None => Err(Status::unauthenticated("no token is fixed yet")),
            Some(fixed) if bool::from(fixed.ct_eq(given)) => Ok(()),
            Some(_) => Err(Status::unauthenticated("missing or wrong token")),
        }
    }
}

/// Checks that a token is long enough; an empty one stands for none.
///
/// # Errors
/// It is too short.
pub fn check_length(token: &[u8]) -> Result<(), Status> {
    if token.is_empty() || token.len() >= SHORTEST_TOKEN {
        return Ok(());
    }
    let message = format!("a token has at least {SHORTEST_TOKEN} bytes");
    Err(crate::status::field_error(tonic::Code::InvalidArgument, "token", message))
}

/// Hexadecimal digits, of either case, to bytes.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |it: u8| char::from(it).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const TOKEN: [u8; 16] = *b"0123456789abcdef";
    const LIST: &str = "/wrenn.envd.v1.Processes/List";
    const CONFIGURE: &str = "/wrenn.envd.v1.Guest/Configure";

    fn with(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(wrenn_proto::TOKEN, token.parse().expect("a header value"));
        headers
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|it| format!("{it:02x}")).collect()
    }

    #[test]
    fn before_and_after_the_token() {
        let access = Access::default();
        let none = HeaderMap::new();
        assert!(access.admit(OPEN, &none).is_ok());
        assert!(access.admit(CONFIGURE, &none).is_ok());
        assert!(access.admit(LIST, &none).is_err());
        access.fix(b"");
        assert!(!access.is_fixed());

        access.fix(&TOKEN);
        assert!(access.admit(OPEN, &none).is_ok());
        assert!(access.admit(CONFIGURE, &none).is_err());
        assert!(access.admit(LIST, &with(&hex(&TOKEN))).is_ok());
        assert!(access.admit(LIST, &with(&hex(&TOKEN).to_uppercase())).is_ok());
        for wrong in ["", "00", "zz", &hex(&TOKEN[..15]), &hex(&[0; 16]), &(hex(&TOKEN) + "0")] {
            let refused = access.admit(LIST, &with(wrong)).expect_err(wrong);
            assert_eq!(refused.code(), Code::Unauthenticated);
        }
    }

    #[test]
    fn the_first_token_stays() {
        let access = Access::default();
        assert_eq!(access.check(b"short").expect_err("too short").code(), Code::InvalidArgument);
        access.fix(&TOKEN);
        assert!(access.check(&TOKEN).is_ok());
        assert!(access.check(b"").is_ok());
        assert_eq!(access.check(&[7; 16]).expect_err("another").code(), Code::PermissionDenied);
        access.fix(&[7; 16]);
        assert!(access.check(&TOKEN).is_ok());
    }

    #[test]
    fn a_rotated_token_is_the_only_one() {
        let access = Access::default();
        access.fix(&TOKEN);
        access.rotate(b"");
        assert!(access.admit(LIST, &with(&hex(&TOKEN))).is_ok());
        access.rotate(&[7; 16]);
        assert!(access.admit(LIST, &with(&hex(&TOKEN))).is_err());
        assert!(access.admit(LIST, &with(&hex(&[7; 16]))).is_ok());
        assert!(access.check(&TOKEN).is_err());
    }
}
