//! Keeps this host known to the control plane: a heartbeat every 15 s, new credentials past half of the old
//! ones' life or when they are refused.
//!
//! A control plane that is away changes nothing here. One that answers and refuses even the refresh
//! token has disowned this host: its capsules are paused, and it keeps asking slowly until an operator
//! has put things right.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::client::{ControlClient, ControlError};
use super::credentials::{Credentials, CredentialsError, CredentialsFile, HostKey};
use crate::capsule::CapsuleRegistry;
use crate::grpc::{ServerTls, TlsError};
use crate::host::HostProbe;

const HEARTBEAT: Duration = Duration::from_secs(15);
/// Between attempts of a host that was disowned.
const DISOWNED: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("the control plane issued credentials that cannot be used")]
    Unusable(#[from] TlsError),
}

/// Registers this host and keeps what it is issued.
pub async fn register(
    client: &ControlClient,
    file: &CredentialsFile,
    token: &SecretString,
    address: String,
    probe: &HostProbe,
) -> Result<Credentials, LinkError> {
    let key = HostKey::generate()?;
    let issued = client.register(token, key.csr_pem().to_owned(), address, &probe.specs()).await?;
    let credentials = key.certified(issued);
    ServerTls::new(&credentials)?;
    file.store(&credentials)?;
    Ok(credentials)
}

/// The task behind the host's standing with the control plane.
pub struct HostLink {
    pub client: ControlClient,
    pub file: CredentialsFile,
    pub credentials: Credentials,
    pub tls: Arc<ServerTls>,
    pub probe: Arc<HostProbe>,
    pub capsules: Arc<CapsuleRegistry>,
}

impl HostLink {
    /// Until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connected = false;
        let mut pause = Duration::ZERO;
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = self.round(&mut connected).await;
        }
    }

    /// One heartbeat with what it leads to; answers with the time until the next.
    async fn round(&mut self, connected: &mut bool) -> Duration {
        if self.credentials.ageing(chrono::Utc::now()) {
            match self.refresh().await {
                Ok(()) => {}
                // Still valid: the heartbeat decides.
                Err(error) => {
                    tracing::warn!(error = %crate::report(&error), "cannot renew the credentials yet");
                }
            }
        }
        match self.client.heartbeat(&self.credentials.token, &self.probe.specs()).await {
            Ok(host) => {
                if !std::mem::replace(connected, true) {
                    tracing::info!(host, "the control plane knows this host");
                }
                HEARTBEAT
            }
            Err(error) if error.denies_credentials() => self.denied(&error).await,
            Err(error) => {
                if std::mem::replace(connected, false) {
                    tracing::warn!(error = %crate::report(&error), "the control plane is away; capsules go on");
                } else {
                    tracing::debug!(error = %crate::report(&error), "the control plane is still away");
                }
                HEARTBEAT
            }
        }
    }

    async fn denied(&mut self, error: &ControlError) -> Duration {
        tracing::warn!(error = %crate::report(error), "the host token was refused; refreshing it");
        match self.refresh().await {
            Ok(()) => Duration::from_secs(1),
            Err(LinkError::Control(error)) if error.denies_credentials() => {
                tracing::error!(
                    error = %crate::report(&error),
                    "this host was disowned: pausing its capsules; register it again to go on"
                );
                self.capsules.pause_all("HOST_DISOWNED").await;
                DISOWNED
            }
            Err(error) => {
                tracing::warn!(error = %crate::report(&error), "cannot refresh the credentials yet");
                HEARTBEAT
            }
        }
    }

    /// New key, new certificate, new tokens; in use from the next handshake on.
    async fn refresh(&mut self) -> Result<(), LinkError> {
        let key = HostKey::generate()?;
        let issued = self.client.refresh(&self.credentials.refresh_token, key.csr_pem().to_owned()).await?;
        let credentials = key.certified(issued);
        self.tls.replace(&credentials)?;
        self.file.store(&credentials)?;
        self.credentials = credentials;
        tracing::info!("credentials renewed");
        Ok(())
    }
}
