//! The processes of running capsules. Whoever looks does not keep them awake.

use futures_util::StreamExt;
use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;

use super::each::{Answer, each};
use super::relay::within_life;
use super::request::Call;
use super::service::{AgentService, BoxStream};

pub fn list_processes(
    service: AgentService,
    request: Request<agent::CapsuleRefs>,
) -> Result<Response<BoxStream<agent::CapsuleProcesses>>, Status> {
    let Call { message, id, .. } = Call::of("ListProcesses", request);
    let lists = each(message.capsule_ids, move |capsule| {
        let running = service.look_into(&capsule);
        let id = id.clone();
        async move {
            let running = running?;
            let list = running.handle.guest.request(envd::ListRequest {}, &id);
            let mut processes = running.handle.guest.processes();
            Ok(within_life(&running, processes.list(list)).await?.into_inner().processes)
        }
    })?;
    let messages = lists.map(|Answer { capsule_id, failure, answer: processes }| {
        Ok(agent::CapsuleProcesses { capsule_id, failure, processes })
    });
    Ok(Response::new(messages.boxed()))
}
