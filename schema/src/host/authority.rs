//! The certificate authority between control plane and hosts.
//!
//! It signs what agents ask for (server certificates, 7 days) and the control plane's own client certificate (24 hours,
//! exchanged every 12). Private keys never leave the machine they were made on.

use std::{
    io::Write,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use wrenn_entities::HostId;

use super::{CONTROL_PLANE_NAME, server_name};
use crate::Error;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
const HOST_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Certificates are valid from a little earlier on, for hosts whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";

/// Why the authority cannot do its work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("could not {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("could not {action}")]
    Certificate {
        action: &'static str,
        #[source]
        source: rcgen::Error,
    },
    #[error("could not {action}")]
    Tls {
        action: &'static str,
        #[source]
        source: rustls::Error,
    },
    #[error("{} is no certificate", path.display())]
    Malformed { path: PathBuf },
    #[error("a task ended without an answer: {0}")]
    Task(String),
}

fn certificate(action: &'static str) -> impl FnOnce(rcgen::Error) -> AuthorityError {
    move |source| AuthorityError::Certificate { action, source }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::File { action, path, source: Arc::new(source) }
}

/// The authority with its key, and the client certificate made with it.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    client: ArcSwap<CertifiedKey>,
}

impl Authority {
    /// Opens the authority in `directory`, making it if there is none. What is there is never written over.
    pub(crate) async fn open(directory: &Path) -> Result<Self, AuthorityError> {
        let directory = directory.to_owned();
        tokio::task::spawn_blocking(move || Self::open_blocking(&directory))
            .await
            .map_err(|error| AuthorityError::Task(error.to_string()))?
    }

    fn open_blocking(directory: &Path) -> Result<Self, AuthorityError> {
        if !directory.exists() {
            make(directory)?;
        }
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(file("read", &path))
        };
        let (key_pem, ca_pem) = (read(KEY_FILE)?, read(CERTIFICATE_FILE)?);
        let key = KeyPair::from_pem(&key_pem).map_err(certificate("read the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)
            .map_err(certificate("read the authority's certificate"))?;
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|_| AuthorityError::Malformed { path: directory.join(CERTIFICATE_FILE) })?;
        let client = ArcSwap::from_pointee(client_certificate(&issuer)?);
        Ok(Self { issuer, ca_pem, ca_der, client })
    }

    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(crate) fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// What tells this installation's authority from every other's: 16 hexadecimal digits.
    pub(crate) fn fingerprint(&self) -> String {
        Sha256::digest(&self.ca_der).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// What the control plane shows to hosts at the moment.
    pub(crate) fn client(&self) -> Arc<CertifiedKey> {
        self.client.load_full()
    }

    /// Puts a new client certificate in the place of the old one; connections that stand are not touched.
    pub(crate) fn renew_client(&self) -> Result<(), AuthorityError> {
        self.client.store(Arc::new(client_certificate(&self.issuer)?));
        Ok(())
    }

    /// Signs the server certificate of a host's agent. Of the request only the public key is taken over: names, uses
    /// and validity are the authority's to decide.
    pub(crate) fn sign_host(&self, id: HostId, address: IpAddr, csr_pem: &str) -> Result<String, Error> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|error| {
            Error::invalid("csrPem", format!("not a usable certificate request: {error}"))
        })?;
        let mut params = leaf(HOST_LIFE, &server_name(id), ExtendedKeyUsagePurpose::ServerAuth)?;
        params.subject_alt_names.push(SanType::IpAddress(address));
        let signed = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(certificate("sign the certificate of a host"))?;
        Ok(signed.pem())
    }
}

/// Writes a new authority aside and puts it in place at once, so that nobody ever sees half of one. Of two that start
/// together the slower one uses what the faster one made.
fn make(directory: &Path) -> Result<(), AuthorityError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(certificate("make the authority's key"))?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, format!("Wrenn hosts {}", Uuid::now_v7().simple()));
    validity(&mut params, CA_LIFE);
    let ca = params.self_signed(&key).map_err(certificate("make the authority's certificate"))?;

    let parent = directory.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(file("make", parent))?;
    let aside = parent.join(format!(".ca-{}", Uuid::now_v7().simple()));
    std::fs::DirBuilder::new().mode(0o700).create(&aside).map_err(file("make", &aside))?;
    let placed = write_private(&aside.join(KEY_FILE), &key.serialize_pem())
        .and_then(|()| write_private(&aside.join(CERTIFICATE_FILE), &ca.pem()))
        .and_then(|()| sync_directory(&aside))
        // Fails when there is a directory with something in it: the other one was faster.
        .and_then(|()| std::fs::rename(&aside, directory).map_err(file("put in place", directory)))
        .and_then(|()| sync_directory(parent));
    if let Err(error) = placed {
        if let Err(left) = std::fs::remove_dir_all(&aside)
            && left.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %aside.display(), error = %left, "an unfinished authority is left behind");
        }
        if !directory.join(CERTIFICATE_FILE).exists() {
            return Err(error);
        }
    }
    Ok(())
}

fn write_private(path: &Path, text: &str) -> Result<(), AuthorityError> {
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file("make", path))?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(file("write", path))
}

fn sync_directory(path: &Path) -> Result<(), AuthorityError> {
    std::fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(file("sync", path))
}

fn validity(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
}

fn leaf(
    life: Duration,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, AuthorityError> {
    let mut params =
        CertificateParams::new([name.to_owned()]).map_err(certificate("name a certificate's subject"))?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, life);
    Ok(params)
}

fn client_certificate(issuer: &Issuer<'static, KeyPair>) -> Result<CertifiedKey, AuthorityError> {
    let key =
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(certificate("make the client key"))?;
    let signed = leaf(DAY, CONTROL_PLANE_NAME, ExtendedKeyUsagePurpose::ClientAuth)?
        .signed_by(&key, issuer)
        .map_err(certificate("sign the client certificate"))?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = rustls::crypto::ring::sign::any_supported_type(&private)
        .map_err(|source| AuthorityError::Tls { action: "use the client key", source })?;
    Ok(CertifiedKey::new(vec![signed.der().clone()], signer))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use wrenn_entities::id::TypedId;

    use super::*;

    #[tokio::test]
    async fn it_is_made_once_and_private() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("ca");
        let (one, other) = tokio::join!(Authority::open(&directory), Authority::open(&directory));
        let (one, other) = (one.expect("opens"), other.expect("opens"));
        assert_eq!(one.ca_pem(), other.ca_pem(), "two that start together use the same one");
        let again = Authority::open(&directory).await.expect("opens again");
        assert_eq!(again.ca_pem(), one.ca_pem());
        let mode = std::fs::metadata(directory.join(KEY_FILE)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left = std::fs::read_dir(parent.path()).expect("lists").count();
        assert_eq!(left, 1, "nothing is left aside");
    }

    #[tokio::test]
    async fn a_request_cannot_choose_its_name() {
        let parent = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(&parent.path().join("ca")).await.expect("opens");
        let key = KeyPair::generate().expect("a key");
        let wish = CertificateParams::new([CONTROL_PLANE_NAME.to_owned()]).expect("names");
        let csr = wish.serialize_request(&key).expect("a request").pem().expect("as PEM");
        let id = HostId::generate();
        let pem = authority.sign_host(id, "127.0.0.1".parse().expect("an address"), &csr).expect("signs");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let text = String::from_utf8_lossy(&der);
        assert!(text.contains(&server_name(id)));
        assert!(!text.contains(CONTROL_PLANE_NAME));
    }

    #[tokio::test]
    async fn nonsense_is_an_input_error() {
        let parent = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(&parent.path().join("ca")).await.expect("opens");
        let error = authority
            .sign_host(HostId::generate(), "127.0.0.1".parse().expect("an address"), "nonsense")
            .expect_err("is refused");
        assert_eq!(error.field(), Some("csrPem"));
    }
}
