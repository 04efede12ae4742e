//! `POST /graphql`, and its upgrade to a WebSocket.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_graphql::{Request, Response as Answer, value};
use axum::{
    Extension,
    body::{Body, Bytes, to_bytes},
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use tracing::Instrument;
use wrenn_schema::{
    HeldOutput, Spent,
    access::{RequestId, authenticate, request_data},
};

use super::{
    app::App,
    gate::SchemaGate,
    persisted::{Persisted, Unusable},
    refusal::Refusal,
};
use crate::{credentials, origin, ws};

/// How long a client may take to send its request.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// With it a client asks where the time goes.
pub(super) const X_WRENN_TIMING: HeaderName = HeaderName::from_static("x-wrenn-timing");

/// The media type of answers for clients that say they know it; plain JSON for the others.
const GRAPHQL_RESPONSE: &str = "application/graphql-response+json";

/// Bytes the WebSocket layer gathers from the socket before it looks at them. Clients say little.
const READ_BUFFER: usize = 16 * 1024;

pub(super) async fn execute(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    require_json(&headers, &id)?;
    let caller = authenticate(&app.services, &credentials::from_headers(&headers))
        .await
        .map_err(|error| Refusal::from_schema(&error, &id))?;
    let body = read(body, &headers, app.max_body, &id).await?;
    let request = parse(&body, &app.persisted, &id)?;
    let held = HeldOutput::default();
    let request = request_data(&app.services, request, caller, id).data(held.clone());
    let work = app.schema.execute(request);
    let response = if headers.contains_key(X_WRENN_TIMING) { timed(work).await } else { work.await };
    let json = serde_json::to_vec(&response).expect("GraphQL values are JSON, and memory takes all of it");
    let body = Bytes::from_owner(Written { json, _held: held });
    Ok((response.http_headers, [(header::CONTENT_TYPE, answer_type(&headers))], body).into_response())
}

/// An answer, which counts with what it holds until it is sent.
struct Written {
    json: Vec<u8>,
    _held: HeldOutput,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

/// With `extensions.wrenn`, which says where the time went, in milliseconds.
async fn timed(work: impl Future<Output = Answer>) -> Answer {
    let (began, spent) = (Instant::now(), Arc::new(Spent::default()));
    let response = spent.note(work).await;
    let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    let timing = value!({
        "totalMs": ms(began.elapsed()),
        "databaseMs": ms(spent.database()),
        "databaseStatements": spent.statements(),
        "agentMs": ms(spent.agents()),
        "agentCalls": spent.calls(),
        "guestMs": ms(spent.guests()),
    });
    response.extension("wrenn", timing)
}

/// Only JSON: every other type a page could send without being asked whether it may.
fn require_json(headers: &HeaderMap, id: &RequestId) -> Result<(), Refusal> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the request must have the content type application/json";
    Err(Refusal::invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, id, message))
}

async fn read(body: Body, headers: &HeaderMap, max: usize, id: &RequestId) -> Result<Bytes, Refusal> {
    let too_large = || {
        let message = format!("the request is larger than {max} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "RESOURCE_EXHAUSTED", id, message)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > max) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, max)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(error)) => {
            Err(Refusal::invalid(StatusCode::BAD_REQUEST, id, format!("the request cannot be read: {error}")))
        }
        Err(_) => {
            let message = "the request did not arrive in time";
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "DEADLINE_EXCEEDED", id, message))
        }
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error)
        .is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>)
}

fn parse(body: &[u8], persisted: &Persisted, id: &RequestId) -> Result<Request, Refusal> {
    let refuse = |message: String| Refusal::invalid(StatusCode::BAD_REQUEST, id, message);
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(refuse("one request at a time: batches are not supported".to_owned()));
    }
    let mut request: Request = serde_json::from_slice(body)
        .map_err(|error| refuse(format!("the request is not a GraphQL request in JSON: {error}")))?;
    persisted.resolve(&mut request).map_err(|unusable| match unusable {
        // No failure: the client tries again with the document.
        Unusable::NotFound => Refusal::new(StatusCode::OK, "NOT_FOUND", id, unusable.to_string()),
        _ => refuse(unusable.to_string()),
    })?;
    if request.query.is_empty() {
        return Err(refuse("`query` is missing".to_owned()));
    }
    Ok(request)
}

fn answer_type(headers: &HeaderMap) -> &'static str {
    let accepts = |value: &axum::http::HeaderValue| {
        value.to_str().is_ok_and(|accepted| accepted.contains(GRAPHQL_RESPONSE))
    };
    if headers.get_all(header::ACCEPT).iter().any(accepts) { GRAPHQL_RESPONSE } else { "application/json" }
}

pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.map_err(|_| {
        let message = "send operations by POST, or upgrade to a WebSocket";
        Refusal::invalid(StatusCode::UPGRADE_REQUIRED, &id, message)
    })?;
    if !origin::may_upgrade(&headers, &app.public_url, &app.cors_origins) {
        let message = "pages of this origin may not connect";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "FORBIDDEN", &id, message));
    }
    let socket = upgrade
        .protocols([ws::SUBPROTOCOL])
        .max_message_size(app.ws.max_message)
        .max_frame_size(app.ws.max_message)
        .read_buffer_size(READ_BUFFER)
        .on_failed_upgrade(|error| tracing::debug!(%error, "an upgrade failed"));
    if socket.selected_protocol().is_none() {
        return Ok(socket.on_upgrade(ws::refuse_subprotocol));
    }
    let offered = credentials::from_headers(&headers);
    let (limits, stop) = (app.ws.clone(), app.stop.clone());
    // From now on the shutdown waits for it, whenever the upgrade is done.
    let counted = app.sockets.token();
    let span = tracing::info_span!("socket", request_id = id.0);
    Ok(socket.on_upgrade(move |socket| {
        async move {
            ws::serve(socket, SchemaGate(app), offered, limits, stop).await;
            drop(counted);
        }
        .instrument(span)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_the_media_type_they_know() {
        let mut headers = HeaderMap::new();
        assert_eq!(answer_type(&headers), "application/json");
        headers.insert(
            header::ACCEPT,
            "application/graphql-response+json, application/json;q=0.9".parse().unwrap(),
        );
        assert_eq!(answer_type(&headers), GRAPHQL_RESPONSE);
    }
}
