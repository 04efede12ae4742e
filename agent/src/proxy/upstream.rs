//! Connections into one life of a capsule: each breaks when the life ends, whoever holds it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Service;

/// Before each attempt to connect: a port that was just detected may not accept yet.
const ATTEMPTS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(400)];
/// For a guest that neither accepts nor refuses.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections kept for the next request to the same port, and for how long.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Of what is read and not yet passed on, per connection, taken as it is needed; a message's head must fit. Whoever reads
/// and whoever writes are different tasks: the more passes between them at once, the less often they wake each other.
pub const BUFFER: usize = 256 << 10;

/// Why there is no connection to a port.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("it refuses connections")]
    Refused(#[source] io::Error),
    #[error("it does not answer")]
    Silent,
    #[error("it cannot be reached")]
    Io(#[source] io::Error),
}

/// HTTP/1.1 to the services of one guest, for one life of it.
#[derive(Debug)]
pub struct Upstream {
    address: Ipv4Addr,
    client: Client<Dialer, Incoming>,
}

impl Upstream {
    /// To the guest at `address`, until `over`.
    pub fn new(address: Ipv4Addr, over: CancellationToken) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(BUFFER)
            // Of a kept connection that turned out to be closed before a byte of the request was written.
            .retry_canceled_requests(true)
            .build(Dialer { over });
        Self { address, client }
    }

    /// Sends a request to a port and waits for the head of the answer.
    pub async fn send(&self, port: u16, mut request: Request<Incoming>) -> Result<Response<Incoming>, Error> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(hyper::http::uri::Scheme::HTTP);
        uri.authority = SocketAddr::from((self.address, port)).to_string().parse().ok();
        // A request's target has a path, as `serve` has made sure.
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        self.client.request(request).await
    }
}

/// What kept a request from being sent, if that is what went wrong.
pub fn dial_error(error: &Error) -> Option<&DialError> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Makes connections for the pool.
#[derive(Debug, Clone)]
struct Dialer {
    over: CancellationToken,
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Bound>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let over = self.over.clone();
        Box::pin(async move {
            let target = uri.authority().and_then(|authority| authority.as_str().parse::<SocketAddr>().ok());
            let target = target.ok_or_else(|| DialError::Io(io::ErrorKind::InvalidInput.into()))?;
            let dialled = over.run_until_cancelled(dial(target)).await;
            let socket =
                dialled.unwrap_or_else(|| Err(DialError::Io(io::ErrorKind::ConnectionAborted.into())))?;
            Ok(TokioIo::new(Bound { socket, over: Box::pin(over.cancelled_owned()) }))
        })
    }
}

async fn dial(target: SocketAddr) -> Result<TcpStream, DialError> {
    let mut last = DialError::Silent;
    for pause in ATTEMPTS {
        sleep(pause).await;
        match timeout(ATTEMPT_TIMEOUT, TcpStream::connect(target)).await {
            Ok(Ok(socket)) => {
                socket.set_nodelay(true).map_err(DialError::Io)?;
                return Ok(socket);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                last = DialError::Refused(error);
            }
            Ok(Err(error)) => last = DialError::Io(error),
            // What did not answer once in so long will not do so at once.
            Err(_) => return Err(DialError::Silent),
        }
    }
    Err(last)
}

/// A connection bound to a life: any use of it fails once that is over, and whoever waits for it is woken.
#[derive(Debug)]
struct Bound {
    socket: TcpStream,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Bound {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.over.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connection for Bound {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Bound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each request with its body, and counts its connections.
    fn echo(listener: TcpListener) -> Arc<AtomicUsize> {
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let service = service_fn(async |request: Request<Incoming>| {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(Response::new(Full::new(body)))
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
            }
        });
        connections
    }

    /// Passes requests on to a port of this machine, and answers with what became of it.
    async fn front(upstream: Arc<Upstream>, port: u16) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let upstream = upstream.clone();
                let service = service_fn(move |mut request: Request<Incoming>| {
                    let upstream = upstream.clone();
                    crate::proxy::head::pass_on(request.headers_mut(), None);
                    async move {
                        let answer = match upstream.send(port, request).await {
                            Ok(answer) => answer.into_body().collect().await.unwrap().to_bytes(),
                            Err(error) => Bytes::from(format!("{:?}", dial_error(&error))),
                        };
                        Ok::<_, Infallible>(Response::new(Full::new(answer)))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
            }
        });
        address
    }

    async fn post(to: SocketAddr, body: &str) -> String {
        let mut socket = TcpStream::connect(to).await.unwrap();
        let length = body.len();
        let request = format!(
            "POST /x?y HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn upstream(over: &CancellationToken) -> Arc<Upstream> {
        Arc::new(Upstream::new(Ipv4Addr::LOCALHOST, over.clone()))
    }

    /// A port that nobody listens on now.
    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_connection_serves_one_request_after_the_other_until_its_life_is_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = echo(listener);
        let over = CancellationToken::new();
        let front = front(upstream(&over), port).await;
        for body in ["one", "two", "three"] {
            assert_eq!(post(front, body).await, body);
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        over.cancel();
        let refused = post(front, "four").await;
        assert!(refused.contains("ConnectionAborted"), "{refused}");
        assert_eq!(connections.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_service_that_is_just_starting_is_dialled_again() {
        let port = free_port().await;
        let front = front(upstream(&CancellationToken::new()), port).await;
        let asked = tokio::spawn(async move { post(front, "early").await });
        // After the first attempt, as nothing tells when that was; the next ones come within half a second.
        sleep(Duration::from_millis(50)).await;
        echo(TcpListener::bind(("127.0.0.1", port)).await.unwrap());
        assert_eq!(asked.await.unwrap(), "early");
    }

    #[tokio::test]
    async fn nobody_listening_is_told_from_a_guest_that_is_gone() {
        let front = front(upstream(&CancellationToken::new()), free_port().await).await;
        let refused = post(front, "x").await;
        assert!(refused.contains("Refused"), "{refused}");
    }
}
