//! What listens in running capsules. Whoever looks does not keep them awake.

use futures_util::StreamExt;
use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;

use super::each::{Answer, each};
use super::passage::pass_on;
use super::relay::within_life;
use super::request::Call;
use super::service::{AgentService, BoxStream};

pub fn list_ports(
    service: AgentService,
    request: Request<agent::CapsuleRefs>,
) -> Result<Response<BoxStream<agent::CapsulePorts>>, Status> {
    let Call { message, id, .. } = Call::of("ListPorts", request);
    let lists = each(message.capsule_ids, move |capsule| {
        let running = service.look_into(&capsule);
        let id = id.clone();
        async move {
            let running = running?;
            let list = running.handle.guest.request(envd::ListPortsRequest {}, &id);
            let mut ports = running.handle.guest.ports();
            Ok(within_life(&running, ports.list(list)).await?.into_inner().ports)
        }
    })?;
    let messages = lists.map(|Answer { capsule_id, failure, answer: ports }| {
        Ok(agent::CapsulePorts { capsule_id, failure, ports })
    });
    Ok(Response::new(messages.boxed()))
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
