use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// The recorder is the process's; servers that follow one another in it share it.
static HANDLE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Upper bounds of the buckets of every duration, in seconds.
const BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// How often what was measured is put into its buckets: until then each measurement takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// Sets up the metrics of the process.
pub(super) fn start() -> Result<PrometheusHandle, BuildError> {
    let mut handle = HANDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = handle.as_ref() {
        return Ok(handle.clone());
    }
    let installed = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    metrics::describe_counter!("wrenn_http_requests_total", "HTTP requests answered");
    metrics::describe_histogram!("wrenn_http_request_seconds", "Time to the head of the answer, in seconds");
    metrics::describe_counter!(
        "wrenn_http_connections_refused_total",
        "Connections of peers that had as many as they may"
    );
    metrics::describe_gauge!("wrenn_ws_sockets", "Open WebSockets");
    metrics::describe_counter!("wrenn_ws_operations_total", "Operations started on WebSockets");
    *handle = Some(installed.clone());
    Ok(installed)
}

/// Keeps the memory of measurements small, whether or not somebody asks for them.
pub(super) async fn keep(handle: PrometheusHandle, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        handle.run_upkeep();
    }
}
