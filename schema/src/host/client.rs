//! Connections to host agents over mutual TLS: gRPC, one channel per host, made on demand and kept; and others, for
//! HTTP/1.1 to what listens in capsules, which share nothing with the channel but the certificates.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    pki_types::ServerName,
    sign::CertifiedKey,
};
use sea_orm::{DatabaseConnection, EntityTrait};
use tokio::{io::BufReader, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint, Uri},
};
use wrenn_entities::{HostId, host};
use wrenn_proto::{
    CONNECTION_WINDOW, CONTENT_WINDOW, FRAME, LARGEST_LISTING, READ_AHEAD, REQUEST_ID, STREAM_WINDOW,
    agent::v1::agent_client,
};

use super::{Authority, AuthorityError, server_name};
use crate::{Error, access::RequestId, spent};

/// A client of one host's agent. Cheap to clone; calls share one connection.
pub(crate) type AgentClient = agent_client::AgentClient<Channel>;
/// An encrypted connection to a host.
pub type HostStream = TlsStream<BufReader<TcpStream>>;

/// How long reaching a host may take, the TLS handshake included.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing arrives is asked for a sign of life this often, and given up after the same time.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

struct KnownHost {
    address: String,
    client: AgentClient,
    /// For the content of files, over a connection of its own.
    content: AgentClient,
}

/// The agents of all hosts.
pub(crate) struct HostClients {
    db: DatabaseConnection,
    tls: TlsConnector,
    /// For HTTP/1.1.
    proxy_tls: TlsConnector,
    known: RwLock<HashMap<HostId, KnownHost>>,
}

impl HostClients {
    pub(crate) fn new(db: DatabaseConnection, authority: &Arc<Authority>) -> Result<Self, AuthorityError> {
        let tls = |action| move |source| AuthorityError::Tls { action, source };
        let mut roots = RootCertStore::empty();
        roots.add(authority.ca_der().clone()).map_err(tls("trust the authority"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls("choose the versions of TLS"))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(CurrentCertificate(authority.clone())));
        // A resumed session would go on with the certificate it began with.
        config.resumption = Resumption::disabled();
        let agreeing_on = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        let (tls, proxy_tls) = (agreeing_on(b"h2"), agreeing_on(b"http/1.1"));
        Ok(Self { db, tls, proxy_tls, known: RwLock::default() })
    }

    /// The agent of a host. The database is asked only for the first time.
    pub(crate) async fn get(&self, id: HostId) -> Result<AgentClient, Error> {
        self.look_up(id, |known| known.client.clone()).await
    }

    /// The same for the content of files.
    pub(crate) async fn content(&self, id: HostId) -> Result<AgentClient, Error> {
        self.look_up(id, |known| known.content.clone()).await
    }

    /// A new connection to a host's proxy into its capsules, which speaks HTTP/1.1.
    pub(crate) async fn dial(&self, id: HostId) -> Result<HostStream, Error> {
        let address = self.look_up(id, |known| known.address.clone()).await?;
        let name = ServerName::try_from(server_name(id)).map_err(|error| Error::Task(error.to_string()))?;
        connect(self.proxy_tls.clone(), name, &address).await.map_err(|error| {
            tracing::warn!(host = %id, %error, "the host's proxy cannot be reached");
            Error::agent_lost()
        })
    }

    async fn look_up<T>(&self, id: HostId, part: impl Fn(&KnownHost) -> T) -> Result<T, Error> {
        let known = |all: &HashMap<HostId, KnownHost>| all.get(&id).map(&part);
        if let Some(part) = known(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(part);
        }
        let row = host::Entity::find_by_id(id).one(&self.db).await?;
        let address = row.and_then(|row| row.address).ok_or_else(Error::agent_lost)?;
        self.set_address(id, &address)?;
        known(&self.known.read().unwrap_or_else(PoisonError::into_inner)).ok_or_else(Error::agent_lost)
    }

    /// Notes where a host is; an open channel to the same address stays.
    pub(crate) fn set_address(&self, id: HostId, address: &str) -> Result<(), Error> {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&id)
            && known.address == address
        {
            return Ok(());
        }
        let client = AgentClient::new(self.channel(id, address, STREAM_WINDOW)?)
            .max_decoding_message_size(LARGEST_LISTING);
        let content = AgentClient::new(self.channel(id, address, CONTENT_WINDOW)?);
        all.insert(id, KnownHost { address: address.to_owned(), client, content });
        Ok(())
    }

    /// A channel that connects when it is first used and again whenever the connection was lost.
    fn channel(&self, id: HostId, address: &str, stream_window: u32) -> Result<Channel, Error> {
        // Plain `http` for the transport: TLS is what the connector below puts under it.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Error::invalid("address", format!("`{address}` is no address: {error}")))?
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let name = ServerName::try_from(server_name(id)).map_err(|error| Error::Task(error.to_string()))?;
        let (tls, address) = (self.tls.clone(), address.to_owned());
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, name, address) = (tls.clone(), name.clone(), address.clone());
            async move { connect(tls, name, &address).await.map(TokioIo::new) }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

async fn connect(tls: TlsConnector, name: ServerName<'static>, address: &str) -> io::Result<HostStream> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        tls.connect(name, BufReader::with_capacity(READ_AHEAD, stream)).await
    };
    tokio::time::timeout(CONNECT, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")))?
}

/// Shows whatever client certificate is current when a connection is made.
struct CurrentCertificate(Arc<Authority>);

impl std::fmt::Debug for CurrentCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CurrentCertificate")
    }
}

impl ResolvesClientCert for CurrentCertificate {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.client())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A message on its way to an agent, with the id of the request that caused it.
pub(crate) fn requested<T>(message: T, id: &RequestId) -> Request<T> {
    let mut request = Request::new(message);
    // An id that cannot be put into a header is not worth failing for.
    if let Ok(value) = AsciiMetadataValue::try_from(id.0.as_str()) {
        request.metadata_mut().insert(REQUEST_ID, value);
    }
    request
}

/// Waits for an agent's answer, at most `deadline`.
pub(crate) async fn answer<T>(
    call: &'static str,
    deadline: Duration,
    response: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    match spent::call(tokio::time::timeout(deadline, response)).await {
        Ok(Ok(response)) => {
            spent::of_it_guests(response.metadata());
            Ok(response.into_inner())
        }
        Ok(Err(status)) => {
            spent::of_it_guests(status.metadata());
            Err(Error::from_agent(call, status))
        }
        Err(_) => Err(Error::deadline_exceeded(format!(
            "the capsule's host did not answer within {} s",
            deadline.as_secs()
        ))),
    }
}
