//! Signatures in URLs: who holds one may do one thing, until it expires, without an API key.
//!
//! A token names the key that it was made with and until when it is good; what it is good for is not in it but in the
//! request that it comes with, and is signed all the same: the capsule's id among it, so that a copy of a capsule honours
//! nothing that was made for its parent. It dies with the key that it was made with.

use std::{
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use sha2::Sha256;
use uuid::Uuid;
use wrenn_entities::{ApiKeyId, CapsuleId, time::now};

use crate::{Error, capsule::rules};

/// Seconds that a URL may be good for; a week is what the object stores allow.
const LIFE: std::ops::RangeInclusive<i32> = 1..=7 * 24 * 60 * 60;
const FILE: &str = "urls.key";
/// Bytes of the key; the digest's own block would not make it stronger.
const KEY: usize = 32;
/// Expiry, key id, and the signature.
const TOKEN: usize = 8 + 16 + 32;
/// Sets these signatures apart from whatever else may be signed one day.
const DOMAIN: &[u8] = b"wrenn url 1";

/// Why URLs cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum UrlKeyError {
    #[error("could not {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} does not hold a key of {KEY} bytes", path.display())]
    Malformed { path: PathBuf },
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> UrlKeyError {
    let path = path.to_owned();
    move |source| UrlKeyError::File { action, path, source }
}

/// What a URL is good for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grant<'a> {
    /// Reaching a port.
    Port {
        capsule: CapsuleId,
        port: u16,
    },
    Read {
        capsule: CapsuleId,
        path: &'a str,
        user: &'a str,
    },
    Write {
        capsule: CapsuleId,
        path: &'a str,
        user: &'a str,
    },
}

impl Grant<'_> {
    /// Unambiguous: each text is preceded by its length.
    fn feed(&self, mac: &mut Hmac<Sha256>) {
        let (kind, capsule, texts) = match self {
            Self::Port { capsule, port } => {
                mac.update(&port.to_be_bytes());
                (b'p', capsule, ["", ""])
            }
            Self::Read { capsule, path, user } => (b'r', capsule, [*path, *user]),
            Self::Write { capsule, path, user } => (b'w', capsule, [*path, *user]),
        };
        mac.update(&[kind]);
        mac.update(capsule.0.as_bytes());
        for text in texts {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
    }
}

/// What a good token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    pub by: ApiKeyId,
    pub expires_at: DateTime<Utc>,
}

/// The key that URLs are signed with.
pub(crate) struct UrlKey(Hmac<Sha256>);

impl UrlKey {
    /// Opens the key in `directory`, making it if there is none. What is there is never written over.
    pub(crate) async fn open(directory: &Path) -> Result<Self, UrlKeyError> {
        let directory = directory.to_owned();
        let path = directory.clone();
        tokio::task::spawn_blocking(move || Self::open_blocking(&directory)).await.unwrap_or_else(|error| {
            Err(UrlKeyError::File { action: "open the key in", path, source: std::io::Error::other(error) })
        })
    }

    fn open_blocking(directory: &Path) -> Result<Self, UrlKeyError> {
        let path = directory.join(FILE);
        if !path.exists() {
            make(directory, &path)?;
        }
        let key = std::fs::read(&path).map_err(file("read", &path))?;
        if key.len() != KEY {
            return Err(UrlKeyError::Malformed { path });
        }
        Hmac::new_from_slice(&key).map(Self).map_err(|_| UrlKeyError::Malformed { path })
    }

    /// A token that opens `grant` until then, on behalf of the key `by`.
    pub(crate) fn sign(&self, grant: Grant<'_>, signed: Signed) -> String {
        let mut token = Vec::with_capacity(TOKEN);
        token.extend_from_slice(&signed.expires_at.timestamp().to_be_bytes());
        token.extend_from_slice(signed.by.0.as_bytes());
        let mac = self.mac(grant, &token).finalize().into_bytes();
        token.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(token)
    }

    /// What the token says, if it opens `grant` now.
    pub(crate) fn verify(&self, grant: Grant<'_>, token: &str) -> Result<Signed, Error> {
        let wrong = || Error::unauthenticated("the signature in the URL is not good for this");
        let token: [u8; TOKEN] =
            URL_SAFE_NO_PAD.decode(token).ok().and_then(|token| token.try_into().ok()).ok_or_else(wrong)?;
        let (said, mac) = token.split_at(TOKEN - 32);
        self.mac(grant, said).verify_slice(mac).map_err(|_| wrong())?;
        let (expires, by) = said.split_at(8);
        let expires = i64::from_be_bytes(expires.try_into().map_err(|_| wrong())?);
        let by = ApiKeyId(Uuid::from_slice(by).map_err(|_| wrong())?);
        let expires_at = DateTime::from_timestamp(expires, 0).ok_or_else(wrong)?;
        if expires_at <= now() {
            return Err(Error::unauthenticated("the URL has expired"));
        }
        Ok(Signed { by, expires_at })
    }

    fn mac(&self, grant: Grant<'_>, said: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(DOMAIN);
        mac.update(said);
        grant.feed(&mut mac);
        mac
    }
}

/// Until when a URL is good that is to be good for `seconds`. The field is `expiresInSec`.
pub(crate) fn expiry(seconds: i32) -> Result<DateTime<Utc>, Error> {
    let seconds = rules::within("expiresInSec", seconds, &LIFE)?;
    let at = now() + TimeDelta::seconds(seconds.into());
    // In whole seconds, as tokens tell it.
    Ok(DateTime::from_timestamp(at.timestamp(), 0).unwrap_or(at))
}

/// Writes a new key aside and links it into place, so that nobody ever sees half of one and of two that start together
/// the slower one uses what the faster one made.
fn make(directory: &Path, path: &Path) -> Result<(), UrlKeyError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory).map_err(file("make", directory))?;
    let mut key = [0; KEY];
    rand::rng().fill_bytes(&mut key);
    let aside = directory.join(format!(".{FILE}-{}", Uuid::now_v7().simple()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut out| out.write_all(&key).and_then(|()| out.sync_all()))
        .map_err(file("write", &aside));
    let placed = written.and_then(|()| match std::fs::hard_link(&aside, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(file("put in place", path)),
    });
    let removed = std::fs::remove_file(&aside).map_err(file("remove", &aside));
    let synced = std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(file("sync", directory));
    placed.and(removed).and(synced)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use wrenn_entities::id::TypedId;

    use super::*;

    async fn key() -> (UrlKey, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a directory");
        (UrlKey::open(&directory.path().join("signing")).await.expect("opens"), directory)
    }

    fn signed(seconds: i64) -> Signed {
        let at = now().timestamp() + seconds;
        let expires_at = DateTime::from_timestamp(at, 0).expect("a time");
        Signed { by: ApiKeyId::generate(), expires_at }
    }

    #[tokio::test]
    async fn the_key_is_made_once_and_private() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("signing");
        let (one, other) = tokio::join!(UrlKey::open(&directory), UrlKey::open(&directory));
        let grant = Grant::Port { capsule: CapsuleId::generate(), port: 80 };
        let token = one.expect("opens").sign(grant, signed(60));
        assert!(other.expect("opens").verify(grant, &token).is_ok(), "two that start together use the same");
        let again = UrlKey::open(&directory).await.expect("opens again");
        assert!(again.verify(grant, &token).is_ok());
        let mode = std::fs::metadata(directory.join(FILE)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&directory).expect("lists").count(), 1, "nothing is left aside");
        std::fs::write(directory.join(FILE), "short").expect("writes");
        assert!(matches!(UrlKey::open(&directory).await, Err(UrlKeyError::Malformed { .. })));
    }

    #[tokio::test]
    async fn a_token_opens_one_thing_only() {
        let (key, _directory) = key().await;
        let (parent, copy) = (CapsuleId::generate(), CapsuleId::generate());
        let grants = [
            Grant::Port { capsule: parent, port: 80 },
            Grant::Port { capsule: parent, port: 81 },
            Grant::Port { capsule: copy, port: 80 },
            Grant::Read { capsule: parent, path: "/a", user: "" },
            Grant::Read { capsule: parent, path: "/a", user: "b" },
            Grant::Read { capsule: parent, path: "/ab", user: "" },
            Grant::Read { capsule: copy, path: "/a", user: "" },
            Grant::Write { capsule: parent, path: "/a", user: "" },
        ];
        for (made, grant) in grants.iter().enumerate() {
            let signed = signed(60);
            let token = key.sign(*grant, signed);
            for (shown, other) in grants.iter().enumerate() {
                let verified = key.verify(*other, &token);
                assert_eq!(verified.ok(), (made == shown).then_some(signed), "{grant:?} for {other:?}");
            }
        }
        let (stranger, _directory) = self::key().await;
        assert!(stranger.verify(grants[0], &key.sign(grants[0], signed(60))).is_err());
    }

    #[tokio::test]
    async fn nothing_of_a_token_can_be_changed_and_none_lasts() {
        let (key, _directory) = key().await;
        let grant = Grant::Port { capsule: CapsuleId::generate(), port: 80 };
        let token = key.sign(grant, signed(60));
        let bytes = URL_SAFE_NO_PAD.decode(&token).expect("is base64");
        for place in 0..bytes.len() {
            let mut other = bytes.clone();
            other[place] ^= 1;
            assert!(key.verify(grant, &URL_SAFE_NO_PAD.encode(other)).is_err(), "byte {place}");
        }
        for nonsense in ["", "a", "ä", &token[1..], &format!("{token}a")] {
            assert!(key.verify(grant, nonsense).is_err(), "{nonsense}");
        }
        let expired = key.verify(grant, &key.sign(grant, signed(0))).expect_err("has expired");
        assert_eq!(expired.to_string(), "the URL has expired");
        for bad in [0, -1, 7 * 24 * 60 * 60 + 1] {
            assert_eq!(expiry(bad).err().as_ref().and_then(Error::field), Some("expiresInSec"));
        }
    }
}
