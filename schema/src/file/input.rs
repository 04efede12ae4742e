//! What requests about files may hold.

use crate::Error;

/// The kernel's own bound for a path.
const PATH: usize = 4096;
const USER: usize = 256;

/// A path in a capsule: absolute, or relative to the user's home.
pub(super) struct Path(pub(super) String);

impl Path {
    pub(super) fn checked(field: &str, path: String) -> Result<Self, Error> {
        if path.is_empty() || path.len() > PATH || path.contains('\0') {
            return Err(Error::invalid(
                field,
                format!("`{field}` is a path of 1 to {PATH} bytes without a zero byte"),
            ));
        }
        Ok(Self(path))
    }
}

/// As whom; the template's default if absent.
pub(super) fn user(user: Option<String>) -> Result<String, Error> {
    let user = user.unwrap_or_default();
    if user.len() > USER || user.contains('\0') {
        return Err(Error::invalid("user", format!("`user` is a name or a number of at most {USER} bytes")));
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_bounded() {
        for good in ["/", "a", "~/x", "/tmp/ä b"] {
            assert!(Path::checked("path", good.into()).is_ok(), "{good}");
        }
        for bad in ["", "a\0b", &"x".repeat(4097)] {
            assert_eq!(Path::checked("to", bad.into()).err().as_ref().and_then(Error::field), Some("to"));
        }
        assert_eq!(user(None).expect("is fine"), "");
        assert!(user(Some("a\0".into())).is_err());
    }
}
