//! Copies of capsules, and machines made ahead of them, with real microVMs. Run one after the other: they share a
//! directory, and with it the golden snapshot.

#[expect(dead_code, reason = "shared with tests that want more of it")]
#[path = "../support/mod.rs"]
mod support;

mod checkpoint;
mod flatten;
mod fork;
mod golden;
mod pool;

use support::calls::{run, until};
use support::{Site, Turn, names};
use tonic::transport::Channel;
use wrenn_agent::ids::TemplateId;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::agent_client::AgentClient;
use wrenn_proto::envd::v1 as envd;

type Client = AgentClient<Channel>;

async fn site() -> (Turn, Site) {
    support::site("copies", "30141-30170").await
}

fn new_template() -> String {
    TemplateId::from_u128(uuid::Uuid::now_v7().as_u128()).to_string()
}

/// Counts in its memory, on its disk and on its output.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n >> /root/log; echo $n; sleep 0.05; done";

fn pid(pid: u32) -> Option<envd::Selector> {
    Some(envd::Selector { by: Some(envd::selector::By::Pid(pid)) })
}

/// All that the counter has printed so far, which must be every number from 1; at least up to `least`.
async fn counted(client: &mut Client, id: &str, counter: u32, least: u64) -> u64 {
    let mut last = 0;
    until("the counter goes on", async || {
        last = printed(client, id, counter).await;
        last >= least
    })
    .await;
    last
}

async fn printed(client: &mut Client, id: &str, counter: u32) -> u64 {
    let request = agent::FollowProcessRequest {
        capsule_id: id.to_owned(),
        process: Some(envd::FollowRequest { selector: pid(counter), after: None }),
    };
    let mut events = client.follow_process(request).await.unwrap().into_inner();
    let mut text = Vec::new();
    // What is held is sent at once; the first pause is the end of it.
    let pause = std::time::Duration::from_millis(30);
    while let Ok(event) = tokio::time::timeout(pause, events.message()).await {
        if let Some(envd::process_event::Event::Output(chunk)) = event.unwrap().unwrap().event {
            assert_eq!(chunk.sequence, text.len() as u64, "nothing is missing");
            text.extend_from_slice(&chunk.data);
        }
    }
    let numbers: Vec<u64> =
        String::from_utf8(text).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "it counts on where it was");
    numbers.len() as u64
}

/// What tells one copy from another, as its own processes see it.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
struct Nature {
    hostname: String,
    machine_id: String,
    random: String,
    capsule_id: String,
}

async fn nature(client: &mut Client, id: &str) -> Nature {
    let ask = "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1; echo $WRENN_CAPSULE_ID";
    let (output, exited) = run(client, id, ask).await;
    assert_eq!(exited.exit_code, Some(0), "{output}");
    let mut lines = output.lines().map(str::to_owned);
    let mut next = || lines.next().unwrap();
    Nature { hostname: next(), machine_id: next(), random: next(), capsule_id: next() }
}

/// The guest's file system read again from its disk is whole, and as the counter in its memory wrote it.
async fn assert_disk_is_of_the_same_moment(client: &mut Client, id: &str, counter: u32) {
    let look = format!(
        "kill -STOP {counter}; sync; echo 3 > /proc/sys/vm/drop_caches; cat /root/log; kill -CONT {counter}"
    );
    let (log, exited) = run(client, id, &look).await;
    assert_eq!(exited.exit_code, Some(0), "{log}");
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(!numbers.is_empty());
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>(), "each number once, in order");
}
