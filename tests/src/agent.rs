//! The agent called directly, as the control plane calls it: for telling what each hop costs, and for what nobody can ask
//! the control plane for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use wrenn_proto::agent::v1::agent_client::AgentClient;
use wrenn_proto::agent::v1::{DeleteTemplateRequest, FlattenCapsuleRequest, StartProcessRequest};
use wrenn_proto::envd::v1::StartRequest;
use wrenn_proto::{CONNECTION_WINDOW, STREAM_WINDOW};

use crate::guest::Ended;

/// The name that agents let in.
const CONTROL_PLANE: &str = "control-plane.wrenn.internal";

/// The longest that a call may take to be answered.
const PATIENCE: Duration = Duration::from_secs(300);

/// An open channel to one host's agent.
pub struct Agent {
    client: AgentClient<Channel>,
}

impl Agent {
    /// `authority` is the directory of the control plane's own certificate authority, which signs a certificate for
    /// this caller too.
    pub async fn connect(authority: &Path, host_id: &str, address: &str) -> Result<Self> {
        let read = |name: &str| {
            let path = authority.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let ca = read("ca.pem")?;
        let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&read("ca.key")?)?)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([CONTROL_PLANE.to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer)?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
            .domain_name(format!("{host_id}.host.wrenn.internal"));
        let channel = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await
            .context("connecting to the agent")?;
        Ok(Self { client: AgentClient::new(channel) })
    }

    /// Makes the image `template` of `team` of a capsule's disk.
    pub async fn flatten(&mut self, capsule: &str, template: &str, team: &str) -> Result<()> {
        let request = FlattenCapsuleRequest {
            capsule_id: capsule.to_owned(),
            template_id: template.to_owned(),
            template_team_id: team.to_owned(),
        };
        self.client.flatten_capsule(request).await.context("flattening a capsule")?;
        Ok(())
    }

    pub async fn delete_template(&mut self, template: &str) -> Result<()> {
        let request = DeleteTemplateRequest { template_id: template.to_owned() };
        self.client.delete_template(request).await.context("deleting a template")?;
        Ok(())
    }

    /// Runs a program to its end.
    pub async fn exec(&mut self, capsule: &str, argv: &[&str]) -> Result<Ended> {
        let argv = argv.iter().map(|&argument| argument.to_owned()).collect();
        let process = StartRequest { argv, close_stdin: true, ..StartRequest::default() };
        let request =
            StartProcessRequest { capsule_id: capsule.to_owned(), process: Some(process), keep_awake: false };
        let events = self.client.exec(request).await.context("starting a process")?.into_inner();
        Ended::read(events).await
    }
}
