//! What listens in a running capsule.

use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;

use super::service::{AgentService, BoxStream};

pub async fn list_ports(
    _service: &AgentService,
    _request: Request<agent::CapsuleRef>,
) -> Result<Response<envd::ListPortsResponse>, Status> {
    Err(Status::unimplemented("ListPorts"))
}

pub async fn watch_ports(
    _service: &AgentService,
    _request: Request<agent::CapsuleRef>,
) -> Result<Response<BoxStream<envd::PortEvent>>, Status> {
    Err(Status::unimplemented("WatchPorts"))
}
