//! What this host proves itself with: a key that never leaves it, the certificate over it, and two tokens.
//! They change together, so they are one file.

use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::client::Issued;
use crate::files;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot make a key and a certificate request")]
    Key(#[source] rcgen::Error),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A fresh ECDSA P-256 key, made on this host, with the request to certify it.
pub struct HostKey {
    key_pem: SecretString,
    csr_pem: String,
}

impl HostKey {
    pub fn generate() -> Result<Self, CredentialsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CredentialsError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "wrenn-agent");
        let csr_pem = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(CredentialsError::Key)?;
        Ok(Self { key_pem: key.serialize_pem().into(), csr_pem })
    }

    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// Joins the key and what was issued over it.
    pub(super) fn certified(self, issued: Issued) -> Credentials {
        Credentials {
            host_id: issued.host_id,
            key_pem: self.key_pem,
            certificate_pem: issued.certificate_pem,
            ca_pem: issued.ca_pem,
            token: issued.token,
            issued_at: Utc::now(),
            token_expires_at: issued.token_expires_at,
            refresh_token: issued.refresh_token,
        }
    }
}

/// Everything issued to this host, and the key it was issued over.
#[derive(Clone, Deserialize)]
pub struct Credentials {
    pub host_id: String,
    pub key_pem: SecretString,
    pub certificate_pem: String,
    pub ca_pem: String,
    pub token: SecretString,
    pub issued_at: DateTime<Utc>,
    /// Of the token and of the certificate, which are issued for the same time.
    pub token_expires_at: DateTime<Utc>,
    pub refresh_token: SecretString,
}

impl Credentials {
    /// Whether half of their life is over.
    pub fn ageing(&self, now: DateTime<Utc>) -> bool {
        now - self.issued_at >= (self.token_expires_at - self.issued_at) / 2
    }
}

/// As stored; the only place where the secrets are written out.
#[derive(Serialize)]
struct Stored<'a> {
    host_id: &'a str,
    key_pem: &'a str,
    certificate_pem: &'a str,
    ca_pem: &'a str,
    token: &'a str,
    issued_at: DateTime<Utc>,
    token_expires_at: DateTime<Utc>,
    refresh_token: &'a str,
}

/// The file the credentials live in.
#[derive(Debug, Clone)]
pub struct CredentialsFile(PathBuf);

impl CredentialsFile {
    /// In the agent's own directory.
    pub fn within(agent_directory: &Path) -> Self {
        Self(agent_directory.join("credentials.json"))
    }

    /// None before the host was registered.
    pub fn load(&self) -> Result<Option<Credentials>, CredentialsError> {
        let bytes = match std::fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CredentialsError::Read { path: self.0.clone(), source }),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| CredentialsError::Damaged { path: self.0.clone(), source })
    }

    /// Replaces them all at once, for root's eyes only.
    pub fn store(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        let failed = |source| CredentialsError::Write { path: self.0.clone(), source };
        let stored = Stored {
            host_id: &credentials.host_id,
            key_pem: credentials.key_pem.expose_secret(),
            certificate_pem: &credentials.certificate_pem,
            ca_pem: &credentials.ca_pem,
            token: credentials.token.expose_secret(),
            issued_at: credentials.issued_at,
            token_expires_at: credentials.token_expires_at,
            refresh_token: credentials.refresh_token.expose_secret(),
        };
        let bytes = serde_json::to_vec_pretty(&stored).map_err(|error| failed(error.into()))?;
        files::replace(&self.0, &bytes, true).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn issued(days: i64) -> Issued {
        Issued {
            host_id: "host-0000000000000000000000001".into(),
            certificate_pem: "certificate".into(),
            ca_pem: "ca".into(),
            token: "token".to_owned().into(),
            token_expires_at: Utc::now() + TimeDelta::days(days),
            refresh_token: "refresh".to_owned().into(),
        }
    }

    #[test]
    fn credentials_survive_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = CredentialsFile::within(dir.path());
        assert!(file.load().unwrap().is_none());
        let key = HostKey::generate().unwrap();
        assert!(key.csr_pem().contains("CERTIFICATE REQUEST"));
        let credentials = key.certified(issued(7));
        file.store(&credentials).unwrap();
        let read = file.load().unwrap().unwrap();
        assert_eq!(read.host_id, credentials.host_id);
        assert_eq!(read.key_pem.expose_secret(), credentials.key_pem.expose_secret());
        assert_eq!(read.refresh_token.expose_secret(), "refresh");
    }

    #[test]
    fn they_age_past_half_their_life() {
        let credentials = HostKey::generate().unwrap().certified(issued(7));
        assert!(!credentials.ageing(Utc::now() + TimeDelta::days(3)));
        assert!(credentials.ageing(Utc::now() + TimeDelta::days(4)));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_a_new_host() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("credentials.json"), b"{").unwrap();
        assert!(matches!(CredentialsFile::within(dir.path()).load(), Err(CredentialsError::Damaged { .. })));
    }
}
