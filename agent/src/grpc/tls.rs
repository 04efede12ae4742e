//! Mutual TLS whose material may change while it serves: each handshake takes the configuration of the moment.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::control::Credentials;

/// DNS name in the control plane's client certificate. Other hosts hold certificates of the same CA;
/// none of theirs carries it.
pub const CONTROL_PLANE_NAME: &str = "control-plane.wrenn.internal";

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes finished and not yet taken by the server.
const ACCEPT_QUEUE: usize = 64;

/// What a connection to the proxy agrees on in its handshake; all others speak gRPC.
const HTTP_1: &[u8] = b"http/1.1";

/// Why certificates cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the {what} is not valid PEM")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("the host's key and certificate cannot be used")]
    Material(#[source] rustls::Error),
    #[error("the CA cannot be used to verify clients")]
    Verifier(#[source] VerifierBuilderError),
}

/// The server's side of mutual TLS.
pub struct ServerTls(ArcSwap<ServerConfig>);

impl ServerTls {
    pub fn new(credentials: &Credentials) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::new(server_config(credentials)?)))
    }

    /// From the next handshake on; connections that stand go on.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), TlsError> {
        self.0.store(server_config(credentials)?);
        Ok(())
    }
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })
}

fn server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates("certificate", &credentials.certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.expose_secret().as_bytes())
        .map_err(|source| TlsError::Pem { what: "key", source })?;
    let mut roots = RootCertStore::empty();
    for ca in certificates("CA", &credentials.ca_pem)? {
        roots.add(ca).map_err(TlsError::Material)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signed = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Material)?
        .with_client_cert_verifier(Arc::new(ControlPlaneOnly { signed }))
        .with_single_cert(chain, key)
        .map_err(TlsError::Material)?;
    config.alpn_protocols = vec![b"h2".to_vec(), HTTP_1.to_vec()];
    // A resumed session would outlive the certificates it was made with.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Signed by our CA for client authentication, and issued to the control plane.
#[derive(Debug)]
struct ControlPlaneOnly {
    signed: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ControlPlaneOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.signed.verify_client_cert(end_entity, intermediates, now)?;
        let name = ServerName::try_from(CONTROL_PLANE_NAME)
            .map_err(|_| rustls::Error::General("the control plane's name is not a DNS name".into()))?;
        rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, &name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// Connections whose handshake is done, by what they speak.
pub struct Accepted {
    pub grpc: ReceiverStream<io::Result<TlsConnection>>,
    /// HTTP/1.1 to the ports of capsules.
    pub proxy: mpsc::Receiver<TlsConnection>,
}

/// Accepts until `stop`. A slow handshake delays nobody else.
pub fn accept(listener: TcpListener, tls: Arc<ServerTls>, stop: CancellationToken) -> Accepted {
    let (to_grpc, grpc) = mpsc::channel(ACCEPT_QUEUE);
    let (to_proxy, proxy) = mpsc::channel(ACCEPT_QUEUE);
    tokio::spawn(async move {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((socket, peer)) => {
                    let acceptor = TlsAcceptor::from(tls.0.load_full());
                    let (to_grpc, to_proxy) = (to_grpc.clone(), to_proxy.clone());
                    tokio::spawn(async move {
                        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(acceptor, socket)).await {
                            // The server has stopped when nobody takes it.
                            Ok(Ok(connection)) if connection.speaks(HTTP_1) => {
                                drop(to_proxy.send(connection).await);
                            }
                            Ok(Ok(connection)) => drop(to_grpc.send(Ok(connection)).await),
                            Ok(Err(error)) => tracing::warn!(%peer, %error, "TLS handshake refused"),
                            Err(_) => tracing::warn!(%peer, "TLS handshake timed out"),
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to come back.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Accepted { grpc: ReceiverStream::new(grpc), proxy }
}

async fn handshake(acceptor: TlsAcceptor, socket: TcpStream) -> io::Result<TlsConnection> {
    socket.set_nodelay(true)?;
    let (local, remote) = (socket.local_addr().ok(), socket.peer_addr().ok());
    let socket = BufReader::with_capacity(wrenn_proto::READ_AHEAD, socket);
    Ok(TlsConnection { stream: acceptor.accept(socket).await?, local, remote })
}

/// A connection of the control plane's.
pub struct TlsConnection {
    stream: TlsStream<BufReader<TcpStream>>,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
}

impl TlsConnection {
    fn speaks(&self, protocol: &[u8]) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(protocol)
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local, remote_addr: self.remote }
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
