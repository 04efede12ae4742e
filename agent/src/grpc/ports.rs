//! What listens in a running capsule. Whoever looks does not keep it awake.

use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;

use super::passage::pass_on;
use super::relay::within_life;
use super::request::Call;
use super::service::{AgentService, BoxStream};

pub async fn list_ports(
    service: &AgentService,
    request: Request<agent::CapsuleRef>,
) -> Result<Response<envd::ListPortsResponse>, Status> {
    let Call { message, id, .. } = Call::of("ListPorts", request);
    let running = service.look_into(&message.capsule_id)?;
    let list = running.handle.guest.request(envd::ListPortsRequest {}, &id);
    let mut ports = running.handle.guest.ports();
    Ok(Response::new(within_life(&running, ports.list(list)).await?.into_inner()))
}

pub async fn watch_ports(
    service: &AgentService,
    request: Request<agent::CapsuleRef>,
) -> Result<Response<BoxStream<envd::PortEvent>>, Status> {
    let Call { message, id, .. } = Call::of("WatchPorts", request);
    let running = service.look_into(&message.capsule_id)?;
    let watch = running.handle.guest.request(envd::WatchPortsRequest {}, &id);
    let mut ports = running.handle.guest.ports();
    let events = within_life(&running, ports.watch(watch)).await?.into_inner();
    Ok(Response::new(Box::pin(pass_on(running, events))))
}
