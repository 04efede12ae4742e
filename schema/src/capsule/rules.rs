//! What inputs about capsules may hold.

use std::collections::BTreeMap;

use crate::{Error, process::EnvVarInput};

pub(crate) const VCPUS: std::ops::RangeInclusive<i32> = 1..=32;
pub(crate) const MEMORY_MIB: std::ops::RangeInclusive<i32> = 128..=65_536;
pub(crate) const DISK_MIB: std::ops::RangeInclusive<i32> = 128..=1_048_576;
const LABELS: usize = 32;
const LABEL_NAME: usize = 63;
const LABEL_VALUE: usize = 255;
const NAME: usize = 63;
/// Variables of one request, and bytes of all their names and values together.
const ENV: usize = 256;
const ENV_BYTES: usize = 128 * 1024;

/// Names that users give: `^[a-z0-9][a-z0-9._-]{0,62}$`, so that no path can come of one.
pub(crate) fn name(field: &str, text: &str) -> Result<(), Error> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fits = (1..=NAME).contains(&text.len())
        && text.bytes().next().is_some_and(letter)
        && text.bytes().all(|byte| letter(byte) || b"._-".contains(&byte));
    if fits {
        Ok(())
    } else {
        Err(Error::invalid(
            field,
            format!(
                "`{field}` is 1 to {NAME} of a-z, 0-9, `.`, `_`, `-` and begins with a letter or a digit"
            ),
        ))
    }
}

/// A number within its bounds.
pub(crate) fn within(field: &str, value: i32, bounds: &std::ops::RangeInclusive<i32>) -> Result<i32, Error> {
    if bounds.contains(&value) {
        Ok(value)
    } else {
        Err(Error::invalid(
            field,
            format!("`{field}` is from {} to {}, not {value}", bounds.start(), bounds.end()),
        ))
    }
}

/// Seconds; 0 = never.
pub(crate) fn timeout(value: i32) -> Result<i32, Error> {
    if value < 0 {
        return Err(Error::invalid("timeoutSec", format!("`timeoutSec` is 0 (never) or more, not {value}")));
    }
    Ok(value)
}

pub(crate) fn labels(labels: &BTreeMap<String, String>) -> Result<(), Error> {
    if labels.len() > LABELS {
        return Err(Error::invalid(
            "labels",
            format!("a capsule has {LABELS} labels at most, not {}", labels.len()),
        ));
    }
    for (name, value) in labels {
        if name.is_empty() || name.len() > LABEL_NAME || name.contains('\0') {
            return Err(Error::invalid(
                "labels",
                format!("the name of a label is 1 to {LABEL_NAME} bytes long"),
            ));
        }
        if value.len() > LABEL_VALUE || value.contains('\0') {
            return Err(Error::invalid(
                "labels",
                format!("the value of a label is at most {LABEL_VALUE} bytes long"),
            ));
        }
    }
    Ok(())
}

pub(crate) fn env(env: &[EnvVarInput]) -> Result<(), Error> {
    if env.len() > ENV {
        return Err(Error::invalid("env", format!("{ENV} environment variables at most, not {}", env.len())));
    }
    if env.iter().map(|var| var.name.len() + var.value.len()).sum::<usize>() > ENV_BYTES {
        return Err(Error::invalid("env", format!("the environment is larger than {ENV_BYTES} bytes")));
    }
    for var in env {
        if var.name.is_empty() || var.name.contains(['=', '\0']) {
            return Err(Error::invalid("env", "the name of a variable is not empty and has no `=`"));
        }
        if var.value.contains('\0') {
            return Err(Error::invalid("env", format!("the value of `{}` has a zero byte", var.name)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "0", "web-1", "a.b_c", &"x".repeat(63)] {
            assert!(name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a/b", "..", "ä", "a b", &"x".repeat(64)] {
            let error = name("name", bad).expect_err(bad);
            assert_eq!(error.field(), Some("name"));
        }
    }

    #[test]
    fn bounds_are_said() {
        let error = within("memoryMib", 1_048_576, &MEMORY_MIB).expect_err("too much");
        assert_eq!(error.to_string(), "`memoryMib` is from 128 to 65536, not 1048576");
        assert_eq!(within("vcpus", 0, &VCPUS).expect_err("none").field(), Some("vcpus"));
    }

    #[test]
    fn labels_are_bounded() {
        let many = (0..33).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(labels(&many).expect_err("too many").field(), Some("labels"));
    }
}
