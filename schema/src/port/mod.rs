//! Ports: what listens in capsules, who may reach it from outside, and how. To look is no activity.

pub mod gateway;
mod mutation;
mod route;
pub(crate) mod url;
mod wake;
mod withdrawal;

use std::{sync::Arc, time::Duration};

use async_graphql::SimpleObject;
use chrono::{DateTime, Utc};
use futures_util::Stream;
use wrenn_entities::{CapsuleId, HostId, time};
use wrenn_proto::{
    agent::v1 as agent,
    envd::v1::{self as envd, port_event::Event},
};

pub use self::mutation::PortMutation;
pub(crate) use self::{
    route::{Routes, public_ports},
    wake::Wakings,
};
use crate::{
    Error, Services,
    access::RequestId,
    capsule::reach::none_if_not_running,
    host::{AgentClient, Answers, Placed, answer, each, requested},
};

const CALL: Duration = Duration::from_secs(15);
/// A stream of changes that broke is opened again after this.
const REOPEN: Duration = Duration::from_secs(1);

/// A TCP port that something in a capsule listens on.
#[derive(SimpleObject, Clone, Debug)]
pub struct Port {
    number: i32,
    /// The command name of who listens, where it can be told.
    process: Option<String>,
    /// When it was first seen.
    since: DateTime<Utc>,
    /// Whether it can be reached from outside without credentials.
    public: bool,
}

impl From<envd::Port> for Port {
    fn from(port: envd::Port) -> Self {
        Self {
            number: i32::try_from(port.number).unwrap_or(i32::MAX),
            process: port.process,
            since: time::from_nanos(port.since_ns).unwrap_or_default(),
            // Its host does not know.
            public: false,
        }
    }
}

impl Port {
    pub(crate) fn among(mut self, public: &[u16]) -> Self {
        self.public = u16::try_from(self.number).is_ok_and(|number| public.contains(&number));
        self
    }
}

/// The open ports of running capsules on their hosts, none of them shown as public.
pub(crate) async fn lists(
    services: &Services,
    request_id: &RequestId,
    capsules: Vec<Placed>,
) -> Answers<Vec<Port>> {
    let ask = |mut client: AgentClient, capsule_ids| async move {
        client.list_ports(requested(agent::CapsuleRefs { capsule_ids }, request_id)).await
    };
    let read =
        |of: agent::CapsulePorts| (of.capsule_id, of.failure, of.ports.into_iter().map(Port::from).collect());
    let lists = each(services, "ListPorts", capsules, ask, read).await;
    lists.into_iter().map(|(placed, list)| (placed, none_if_not_running(list))).collect()
}

/// An item once changes of a running capsule's ports are told, then whenever one has opened or closed, or may have while
/// nobody could be asked. Never ends: a capsule that does not run any more is for whoever watches its state.
pub(crate) fn changes(
    services: Arc<Services>,
    request_id: RequestId,
    (host, id): Placed,
) -> impl Stream<Item = ()> + Send {
    async_stream::stream! {
        loop {
            match watch(&services, &request_id, host, id).await {
                Ok(mut events) => {
                    let mut present = false;
                    while let Ok(Some(event)) = events.message().await {
                        match event.event {
                            Some(Event::Synced(_)) => {
                                present = true;
                                yield ();
                            }
                            Some(Event::Opened(_) | Event::Closed(_)) if present => yield (),
                            _ => {}
                        }
                    }
                }
                Err(error) => tracing::debug!(capsule = %id, error = %error.chain(), "its ports cannot be watched"),
            }
            tokio::time::sleep(REOPEN).await;
        }
    }
}

async fn watch(
    services: &Services,
    request_id: &RequestId,
    host: HostId,
    id: CapsuleId,
) -> Result<tonic::Streaming<envd::PortEvent>, Error> {
    let mut client = services.hosts.get(host).await?;
    let request = requested(agent::CapsuleRef { capsule_id: id.to_string() }, request_id);
    answer("WatchPorts", CALL, client.watch_ports(request)).await
}
