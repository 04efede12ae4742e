//! What goes into and out of a capsule besides its processes, with a real agent and real microVMs: files, ports, the
//! proxy, load; and what is asked of, or done to, many of them at once.

mod drain;
mod each;
mod files;
mod http;
mod load;
mod ports;
mod server;
#[expect(dead_code, reason = "shared with tests that want more of it")]
#[path = "../support/mod.rs"]
mod support;

use support::calls::{capsule, soon};
use support::{Site, Turn};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use wrenn_agent::Agent;
use wrenn_proto::CAUSE;
use wrenn_proto::agent::v1::CapsuleState;
use wrenn_proto::agent::v1::agent_client::AgentClient;

type Client = AgentClient<Channel>;

async fn site() -> (Turn, Site) {
    support::site("io", "30121-30140").await
}

/// Stops an agent whose capsules are all gone, and makes sure that nothing of them is left.
async fn finish(agent: Agent, site: Site) {
    agent.stop().await;
    assert_eq!(site.leftovers(), std::collections::BTreeSet::new());
    site.close().await;
}

async fn state(client: &mut Client, id: &str) -> CapsuleState {
    client.get_capsule(capsule(id)).await.unwrap().into_inner().state()
}

fn cause(status: &Status) -> Option<&str> {
    status.metadata().get(CAUSE).and_then(|cause| cause.to_str().ok())
}

/// What a stream ends with.
async fn ended<T>(mut stream: Streaming<T>) -> Status {
    soon("the end of a stream", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => return status,
            }
        }
    })
    .await
}
