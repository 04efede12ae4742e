//! A capsule's load.

use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;

use super::service::{AgentService, BoxStream};

pub async fn get_metrics(
    _service: &AgentService,
    _request: Request<agent::GetMetricsRequest>,
) -> Result<Response<agent::GetMetricsResponse>, Status> {
    Err(Status::unimplemented("GetMetrics"))
}

pub async fn watch_metrics(
    _service: &AgentService,
    _request: Request<agent::CapsuleRef>,
) -> Result<Response<BoxStream<agent::MetricPoint>>, Status> {
    Err(Status::unimplemented("WatchMetrics"))
}
