//! The processes of many capsules, asked for together.

use wrenn_proto::agent::v1 as agent;

use super::Process;
use crate::{
    Error, Services,
    access::RequestId,
    capsule::reach::none_if_not_running,
    host::{AgentClient, Answers, Placed, each, only, requested},
};

/// The processes of running capsules on their hosts; none of those that turn out not to run.
pub(crate) async fn lists(
    services: &Services,
    request_id: &RequestId,
    capsules: Vec<Placed>,
) -> Answers<Vec<Process>> {
    let lists = asked(services, request_id, capsules).await;
    lists.into_iter().map(|(placed, list)| (placed, none_if_not_running(list))).collect()
}

/// Those of one capsule that has to run.
pub(super) async fn list(
    services: &Services,
    request_id: &RequestId,
    capsule: Placed,
) -> Result<Vec<Process>, Error> {
    only(asked(services, request_id, vec![capsule]).await)
}

async fn asked(services: &Services, request_id: &RequestId, capsules: Vec<Placed>) -> Answers<Vec<Process>> {
    let ask = |mut client: AgentClient, capsule_ids| async move {
        client.list_processes(requested(agent::CapsuleRefs { capsule_ids }, request_id)).await
    };
    let read = |of: agent::CapsuleProcesses| {
        (of.capsule_id, of.failure, of.processes.into_iter().map(Process::from).collect())
    };
    each(services, "ListProcesses", capsules, ask, read).await
}
