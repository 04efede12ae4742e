//! Random secrets and the digests under which they are kept.

use rand::distr::{Alphanumeric, SampleString};
use secrecy::SecretString;
use sha2::{Digest, Sha256};

/// A new secret: the prefix and as many random base-62 characters.
pub(crate) fn generate(prefix: &str, length: usize) -> SecretString {
    format!("{prefix}{}", Alphanumeric.sample_string(&mut rand::rng(), length)).into()
}

/// SHA-256. Secrets of ours have more than 128 random bits, so a slow hash would add nothing.
pub(crate) fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}
