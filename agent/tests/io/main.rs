//! What goes into and out of a capsule besides its processes, with a real agent and real microVMs: files, ports, the
//! proxy, load; and what is asked of, or done to, many of them at once.

mod drain;
mod each;
mod files;
mod http;
mod load;
mod ports;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::sync::LazyLock;

use support::Site;
use support::calls::capsule;
use tokio::sync::{Mutex, MutexGuard};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use wrenn_agent::Agent;
use wrenn_proto::CAUSE;
use wrenn_proto::agent::v1::CapsuleState;
use wrenn_proto::agent::v1::agent_client::AgentClient;

type Client = AgentClient<Channel>;

static ONE_AT_A_TIME: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);

async fn site() -> (MutexGuard<'static, ()>, Site) {
    let turn = ONE_AT_A_TIME.lock().await;
    (turn, Site::prepare("io", "30121-30140"))
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
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => return status,
        }
    }
}

/// Ends the only VMM there is, as a crash would.
fn kill(site: &Site) {
    let vmm = nix::unistd::Pid::from_raw(site.vmms()[0]);
    nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL).unwrap();
}
