//! The processes of many capsules, asked for together.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_graphql::dataloader::Loader;
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

/// Asks hosts for the processes of capsules.
pub(crate) struct ProcessLists {
    services: Arc<Services>,
    request_id: RequestId,
}

impl ProcessLists {
    pub(crate) fn new(services: Arc<Services>, request_id: RequestId) -> Self {
        Self { services, request_id }
    }

    async fn list(&self, host: HostId, id: CapsuleId) -> Result<Vec<Process>, Error> {
        let mut client = self.services.hosts.get(host).await?;
        let request = requested(agent::CapsuleRef { capsule_id: id.to_string() }, &self.request_id);
        let list = answer("ListProcesses", CALL, client.list_processes(request)).await?;
        Ok(list.processes.into_iter().map(Process::from).collect())
    }
}

impl Loader<(HostId, CapsuleId)> for ProcessLists {
    /// One capsule that cannot be asked does not spoil the others.
    type Value = Result<Vec<Process>, Error>;
    type Error = Error;

    async fn load(
        &self,
        capsules: &[(HostId, CapsuleId)],
    ) -> Result<HashMap<(HostId, CapsuleId), Self::Value>, Error> {
        let lists = stream::iter(capsules.iter().copied())
            .map(|(host, id)| async move { ((host, id), self.list(host, id).await) })
            .buffer_unordered(AT_ONCE);
        Ok(lists.collect().await)
    }
}
