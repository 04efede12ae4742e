//! The processes of many capsules, asked for together.

use std::{collections::HashMap, time::Duration};

use wrenn_entities::{CapsuleId, HostId};
use wrenn_proto::agent::v1 as agent;

use super::Process;
use crate::{
    Error, Services,
    access::RequestId,
    capsule::reach::none_if_not_running,
    host::{Placed, answer, each, requested},
};

const CALL: Duration = Duration::from_secs(15);

/// The processes of running capsules on their hosts.
pub(crate) async fn lists(
    services: &Services,
    request_id: &RequestId,
    capsules: Vec<Placed>,
) -> HashMap<Placed, Result<Vec<Process>, Error>> {
    each(capsules, |host, id| list(services, request_id, host, id)).await
}

async fn list(
    services: &Services,
    request_id: &RequestId,
    host: HostId,
    id: CapsuleId,
) -> Result<Vec<Process>, Error> {
    let mut client = services.hosts.get(host).await?;
    let request = requested(agent::CapsuleRef { capsule_id: id.to_string() }, request_id);
    let list = answer("ListProcesses", CALL, client.list_processes(request)).await;
    none_if_not_running(list.map(|list| list.processes.into_iter().map(Process::from).collect()))
}
