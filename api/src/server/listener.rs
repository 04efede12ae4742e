//! The listening socket and its connections.
//!
//! There are only so many at once; who comes when all places are taken waits in the kernel, and there nothing is read.
//! A peer that has more than it may is hung up on.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{
    capacity::{Capacity, Place},
    patience::{Answer, Patient, Phases},
};

/// Connections the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;

/// How long a connection may be kept without another request. Longer than the ten minutes of the usual load balancers,
/// so that it is not this server that ends a connection on which one of them is just sending a request.
const IDLE: Duration = Duration::from_secs(620);

/// After a failure to accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Listens. `send_buffer` is what the kernel may hold of what a peer has not taken, in bytes: it bounds how much
/// output is under way to a reader that stops, because the guest can only repeat so much of it.
pub(super) fn bind(address: SocketAddr, send_buffer: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it. The kernel doubles what it is given (socket(7)).
    socket.set_send_buffer_size(send_buffer / 2)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How many connections there may be: as many as were asked for, where the process may have twice as many open files,
/// as a request for a capsule or a host takes another one.
pub(super) fn most_connections(wanted: usize) -> usize {
    let Ok((files, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let possible = usize::try_from(files / 2).unwrap_or(usize::MAX).max(1);
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            files,
            "WRENN_MAX_CONNECTIONS: the limit of open files allows fewer"
        );
    }
    wanted.min(possible)
}

/// Serves connections until told to stop; then waits for the requests under way, for `grace` at most.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    capacity: Capacity,
    stop: CancellationToken,
    grace: Duration,
) {
    let connections = TaskTracker::new();
    loop {
        let accepting = async {
            let place = capacity.place().await;
            listener.accept().await.map(|(stream, peer)| (stream, peer, place))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepting => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => match place.of(peer.ip()) {
                Some(place) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    connections.spawn(connection(stream, peer, place, router.clone(), stop.clone()));
                }
                None => {
                    metrics::counter!("wrenn_http_connections_refused_total").increment(1);
                    tracing::debug!(%peer, "a peer has as many connections as it may");
                }
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(?grace, "requests did not end in time");
    }
}

/// Serves one connection until it ends or becomes a WebSocket.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    place: Place,
    router: Router,
    stop: CancellationToken,
) {
    let phases = Phases::new();
    let answering = phases.clone();
    let stream = Patient::new(stream, phases.clone(), Some(place));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let busy = answering.busy();
        request.extensions_mut().insert(ConnectInfo(peer));
        let answered = router.clone().oneshot(request.map(Body::new));
        async move { Ok::<_, Infallible>(Answer::to(answered.await?, busy)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // In this order: an answer begins in the connection, and then it has a cutoff.
        biased;
        ended = connection.as_mut() => ended,
        why = phases.cut_off() => return tracing::debug!(%why, %peer, "an answer was broken off"),
        () = stop.cancelled() => {
            // The request under way is answered, no other is read.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection ended in error");
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Bytes, response::Response, routing};
    use futures_util::stream;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{Instant, sleep},
    };

    use super::*;
    use crate::cutoff::Cutoff;

    const CUTOFF: Duration = Duration::from_secs(60);

    fn with_cutoff(body: Body) -> Response {
        let mut response = Response::new(body);
        response.extensions_mut().insert(Cutoff::new(async {
            sleep(CUTOFF).await;
            wrenn_schema::Error::unauthenticated("no more")
        }));
        response
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_broken_off_also_where_nobody_takes_it() {
        let endless = stream::repeat(Ok::<_, Infallible>(Bytes::from_static(&[0; 1024])));
        let router = Router::new()
            .route("/short", routing::get(async || with_cutoff(Body::from("short"))))
            .route("/endless", routing::get(async move || with_cutoff(Body::from_stream(endless))));
        let (mut client, server) = duplex(4096);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let place = Capacity::new(1, 0).place().await.of(peer.ip()).unwrap();
        let served = tokio::spawn(connection(server, peer, place, router, CancellationToken::new()));

        client.write_all(b"GET /short HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"short") {
            answer.push(client.read_u8().await.unwrap());
        }
        // The end of one answer's time is not that of the next one.
        sleep(CUTOFF * 2).await;
        let began = Instant::now();
        client.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        served.await.unwrap();
        assert_eq!(began.elapsed(), CUTOFF);
    }
}
