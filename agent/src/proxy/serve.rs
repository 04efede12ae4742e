//! The connections of the control plane that speak HTTP/1.1.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::exchange::{Answer, exchange};
use super::upstream::BUFFER;
use crate::capsule::CapsuleRegistry;
use crate::grpc::TlsConnection;
use crate::request_id::RequestId;

/// How long the control plane may keep a connection without a request.
const IDLE: Duration = Duration::from_secs(620);

/// Serves connections until there are no more; after `stop` each ends with the request it is at.
pub async fn serve(
    mut connections: mpsc::Receiver<TlsConnection>,
    capsules: Arc<CapsuleRegistry>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    while let Some(Some(connection)) = stop.run_until_cancelled(connections.recv()).await {
        tasks.spawn(serve_one(connection, capsules.clone(), stop.clone()));
    }
    tasks.close();
    tasks.wait().await;
}

async fn serve_one(connection: TlsConnection, capsules: Arc<CapsuleRegistry>, stop: CancellationToken) {
    let service = service_fn(|request| answer(&capsules, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        // Its peer went away, mostly, or an answer broke off in the middle.
        tracing::debug!(error = %crate::report(&error), "a proxy connection ended");
    }
}

async fn answer(
    capsules: &CapsuleRegistry,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let id = RequestId::from_headers(request.headers());
    let span = tracing::info_span!("proxy", request = %id);
    let outcome = exchange(capsules, request).instrument(span.clone()).await;
    Ok(outcome.unwrap_or_else(|refusal| {
        span.in_scope(|| tracing::debug!(refusal = %crate::report(&refusal), "not passed on"));
        refusal.answer()
    }))
}
