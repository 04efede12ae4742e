//! Plain HTTP for operators: `/health` and Prometheus' `/metrics`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::capsule::CapsuleRegistry;

/// Seconds. A create from a golden snapshot lies in the middle, a first boot at the end.
const BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0];
const UPKEEP: Duration = Duration::from_secs(5);

/// The process's one recorder of metrics.
pub fn recorder() -> Result<PrometheusHandle, BuildError> {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = RECORDER.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .install_recorder()?;
    Ok(RECORDER.get_or_init(|| handle).clone())
}

#[derive(Clone)]
struct Operators {
    capsules: Arc<CapsuleRegistry>,
    recorder: PrometheusHandle,
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    capsules: Arc<CapsuleRegistry>,
    recorder: PrometheusHandle,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let upkeep = recorder.clone();
    let until = stop.clone();
    tokio::spawn(async move {
        while until.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
            upkeep.run_upkeep();
        }
    });
    let routes = Router::new()
        .route("/health", get(health))
        .route("/metrics", get(render))
        .with_state(Operators { capsules, recorder });
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn health(State(operators): State<Operators>) -> impl IntoResponse {
    Json(serde_json::json!({
        "status": "ok",
        "version": crate::VERSION,
        "capsulesRunning": operators.capsules.count_running(),
    }))
}

async fn render(State(operators): State<Operators>) -> impl IntoResponse {
    let running = u32::try_from(operators.capsules.count_running()).unwrap_or(u32::MAX);
    metrics::gauge!("wrenn_capsules_running").set(f64::from(running));
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], operators.recorder.render())
}
