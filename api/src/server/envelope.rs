//! What goes around every request: its id, its span, its headers, its metrics, and a net under panics.

use std::{net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tracing::Instrument;

use super::refusal::Refusal;
use crate::{proxy::FromCapsule, request_id};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers that every answer carries.
pub(super) struct SecurityHeaders(HeaderMap);

impl SecurityHeaders {
    /// `https`: clients reach this server by TLS, and shall do so for a year.
    pub(super) fn new(https: bool) -> Self {
        let mut headers = HeaderMap::new();
        let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(header::X_FRAME_OPTIONS, "DENY");
        set(header::REFERRER_POLICY, "no-referrer");
        set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
        set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
        if https {
            set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
        }
        Self(headers)
    }

    /// Adds those that the answer does not set itself.
    fn add_to(&self, answer: &mut HeaderMap) {
        for (name, value) in &self.0 {
            answer.entry(name).or_insert_with(|| value.clone());
        }
        answer.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
}

/// Around what this server answers itself.
pub(super) async fn wrap(
    State(security): State<Arc<SecurityHeaders>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let path = path.as_ref().map_or("other", MatchedPath::as_str).to_owned();
    let mut response = around(path, request, |request| next.run(request)).await;
    security.add_to(response.headers_mut());
    response
}

/// Around every request: `path` is what it is counted under.
pub(super) async fn around<F>(path: String, mut request: Request, next: impl FnOnce(Request) -> F) -> Response
where
    F: Future<Output = Response>,
{
    let start = Instant::now();
    let id = request_id::accept(request.headers().get(X_REQUEST_ID));
    let method = request.method().clone();
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let peer = peer.map(tracing::field::display);
    let span = tracing::info_span!("request", request_id = id.0, peer, %method, path);
    request.extensions_mut().insert(id.clone());

    let answered = AssertUnwindSafe(next(request).instrument(span.clone())).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", &id, "internal error").into_response()
    });

    let status = response.status();
    let elapsed = start.elapsed();
    // What goes wrong in a capsule is no failure of this server's.
    let failed = status.is_server_error() && response.extensions().get::<FromCapsule>().is_none();
    span.in_scope(|| match failed {
        true => tracing::error!(status = status.as_u16(), ?elapsed, "answered"),
        false => tracing::debug!(status = status.as_u16(), ?elapsed, "answered"),
    });
    let labels =
        [("method", method.as_str().to_owned()), ("path", path), ("status", status.as_u16().to_string())];
    metrics::counter!("wrenn_http_requests_total", &labels).increment(1);
    metrics::histogram!("wrenn_http_request_seconds", &labels[..2]).record(elapsed);

    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().entry(X_REQUEST_ID).or_insert(value);
    }
    response
}
