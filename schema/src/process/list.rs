//! The processes of many capsules, asked for together.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use wrenn_entities::{CapsuleId, HostId};
use wrenn_proto::agent::v1 as agent;

use super::Process;
use crate::{
    Error, Services,
    access::RequestId,
    host::{answer, requested},
};

const CALL: Duration = Duration::from_secs(15);
/// Hosts list the processes of one capsule a call; so many calls are under way at a time.
const AT_ONCE: usize = 16;

/// The processes of running capsules on their hosts.
pub(crate) async fn lists(
    services: &Services,
    request_id: &RequestId,
    capsules: Vec<(HostId, CapsuleId)>,
) -> HashMap<(HostId, CapsuleId), Result<Vec<Process>, Error>> {
    stream::iter(capsules)
        .map(|(host, id)| async move { ((host, id), list(services, request_id, host, id).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

async fn list(
    services: &Services,
    request_id: &RequestId,
    host: HostId,
    id: CapsuleId,
) -> Result<Vec<Process>, Error> {
    let mut client = services.hosts.get(host).await?;
    let request = requested(agent::CapsuleRef { capsule_id: id.to_string() }, request_id);
    let list = answer("ListProcesses", CALL, client.list_processes(request)).await?;
    Ok(list.processes.into_iter().map(Process::from).collect())
}
