//! Connections to the proxies of hosts, kept for the next request.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response, Uri},
};
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client, Error,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::Service;
use wrenn_schema::{
    Services,
    gateway::{self, HostStream},
};

/// Connections that are kept per host, and for how long: a little less than the host keeps them.
const IDLE_CONNECTIONS: usize = 64;
const IDLE_FOR: Duration = Duration::from_secs(600);
/// Bytes of what is read and not yet passed on, per connection, taken as they are needed; a message's head must fit. Whoever
/// reads and whoever writes are different tasks: the more passes between them at once, the less often they wake each other.
const BUFFER: usize = 256 * 1024;

/// HTTP/1.1 to every host.
pub(super) struct Pool(Client<Dialer, Body>);

impl Pool {
    pub(super) fn new(services: &Arc<Services>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(BUFFER)
            .set_host(false)
            // Of a kept connection that turned out to be closed before a byte of the request was written.
            .retry_canceled_requests(true)
            .build(Dialer(Arc::downgrade(services)));
        Self(client)
    }

    /// Sends a request to a host and waits for the head of the answer. Of the request's URI path and query count.
    pub(super) async fn send(
        &self,
        host: &str,
        path: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, SendError> {
        *request.uri_mut() = format!("http://{host}{path}").parse().map_err(SendError::Path)?;
        self.0.request(request).await.map_err(SendError::Exchange)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the path cannot be passed on")]
    Path(#[source] axum::http::uri::InvalidUri),
    #[error("the host did not answer")]
    Exchange(#[source] Error),
}

impl SendError {
    /// What the schema says of it, where it could not connect.
    pub(super) fn unreachable(&self) -> Option<&wrenn_schema::Error> {
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

/// Makes connections for the pool.
#[derive(Clone)]
struct Dialer(Weak<Services>);

impl Service<Uri> for Dialer {
    type Response = TokioIo<HostConnection>;
    type Error = wrenn_schema::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let services = self.0.upgrade();
        Box::pin(async move {
            let gone = || wrenn_schema::Error::unavailable("the server is shutting down");
            let services = services.ok_or_else(gone)?;
            let stream = gateway::dial(&services, uri.host().unwrap_or_default()).await?;
            Ok(TokioIo::new(HostConnection(stream)))
        })
    }
}

struct HostConnection(HostStream);

impl Connection for HostConnection {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for HostConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for HostConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
