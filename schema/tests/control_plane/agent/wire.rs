//! The agent's end of the wire: mutual TLS, and connections that break when it is killed.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rcgen::KeyPair;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Connected};
use wrenn_proto::agent::v1::agent_server::AgentServer;

use super::service::Service;

/// What a connection for the proxy agrees on.
const HTTP_1: &[u8] = b"http/1.1";

pub fn server_config(certificate: &str, ca: &str, key: &KeyPair) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("a CA")).expect("is trusted");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .expect("verifies clients");
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .expect("the certificate fits the key");
    config.alpn_protocols = vec![b"h2".to_vec(), HTTP_1.to_vec()];
    config
}

/// Breaks off when the agent is killed, as a connection to a dead process does.
struct Connection {
    inner: TlsStream<TcpStream>,
    killed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

fn killed() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, "killed")
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.killed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(killed()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// `http`: where connections for the proxy go.
pub async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    service: Service,
    http: mpsc::Sender<TlsStream<TcpStream>>,
    stop: CancellationToken,
) {
    let (sender, incoming) = mpsc::channel::<std::io::Result<Connection>>(16);
    let stopped = stop.clone();
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
            let (tls, sender, stopped) = (tls.clone(), sender.clone(), stopped.clone());
            let http = http.clone();
            tokio::spawn(async move {
                if let Ok(inner) = tls.accept(stream).await {
                    if inner.get_ref().1.alpn_protocol() == Some(HTTP_1) {
                        // That nobody wants it ends it.
                        let _ = http.send(inner).await;
                        return;
                    }
                    let killed = Box::pin(stopped.cancelled_owned());
                    let _ = sender.send(Ok(Connection { inner, killed })).await;
                }
            });
        }
    });
    let serving = Server::builder()
        .initial_stream_window_size(wrenn_proto::STREAM_WINDOW)
        .add_service(AgentServer::new(service))
        .serve_with_incoming(ReceiverStream::new(incoming));
    stop.run_until_cancelled(serving).await;
}
