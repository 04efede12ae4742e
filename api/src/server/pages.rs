use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use wrenn_schema::access::RequestId;

use super::{app::App, refusal};

/// The schema in GraphQL's own language.
pub(super) async fn sdl(State(app): State<Arc<App>>, id: Extension<RequestId>) -> Response {
    match &app.sdl {
        Some(sdl) => {
            ([(header::CONTENT_TYPE, "application/graphql; charset=utf-8")], sdl.clone()).into_response()
        }
        None => refusal::not_found(id).await.into_response(),
    }
}

/// Whether requests can be served: the database answers.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let version = env!("CARGO_PKG_VERSION");
    match app.services.ready().await {
        Ok(()) => Json(json!({ "status": "ok", "version": version })).into_response(),
        Err(error) => {
            tracing::error!(%error, "not healthy");
            let body = Json(json!({ "status": "unavailable", "version": version }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

/// Every background job with its last run.
pub(super) async fn jobs(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "jobs": app.jobs.status() })).into_response()
}

/// For Prometheus.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.telemetry.render())
        .into_response()
}
