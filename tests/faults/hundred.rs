//! One capsule that is paused and resumed over and over.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::counter::Counter;
use wrenn_tests::graphql::Client;
use wrenn_tests::procfs;
use wrenn_tests::stack::Stack;

use super::churn;

const ROUNDS: usize = 100;

/// Rounds from one thorough look to the next: more than there are generations of memory, so that each look is at
/// memory that was merged since the last one.
const THOROUGH: usize = 10;

/// When the agent's memory is looked at: what every round leaves behind is left in both halves, and what its allocator
/// takes once for another thread is not.
const LOOKS: [usize; 3] = [THOROUGH, (THOROUGH + ROUNDS) / 2, ROUNDS];

/// What it may grow by from each look to the next, in KiB: more than its allocator's play, and a tenth of what it would be
/// if every round left behind as little as one map of the capsule's memory.
const AGENT_GROWTH_KIB: u64 = 2048;

/// Content that nothing changes, in memory and on disk, with what it is to be recognised by.
const WRITE: &str = "for dir in /run /root; do \
    head -c 4194304 /dev/urandom > $dir/content && sha256sum $dir/content > $dir/sum || exit; done; sync";

/// What was read before is read from the disk again.
const VERIFY: &str =
    "echo 3 > /proc/sys/vm/drop_caches; sha256sum --quiet -c /run/sum && sha256sum --quiet -c /root/sum";

pub async fn pauses_in_a_row_lose_nothing(stack: &Stack) -> Result<()> {
    let client = stack.client();
    churn::one_life(stack).await?;
    let before = churn::at_rest(stack).await?;
    let id = client.create(json!({})).await?.id;
    let mut counter = Counter::start(client, &id).await?;
    client.sh(&id, WRITE).await?;
    let counting = counting(client, &id).await?;

    let mut agent_kib = Vec::new();
    for round in 1..=ROUNDS {
        let looked = async {
            client.sh(&id, &format!("echo {round} >> /run/rounds; echo {round} >> /root/rounds")).await?;
            ensure!(client.pause(&id).await?.state == "PAUSED");
            ensure!(client.resume(&id).await?.state == "RUNNING");
            counter.check(client, &id).await?;
            if round.is_multiple_of(THOROUGH) {
                look_closely(client, &id, round, &mut counter, &counting).await?;
            }
            Ok(())
        };
        looked.await.with_context(|| format!("round {round}"))?;
        if LOOKS.contains(&round) {
            agent_kib.push(agent_memory(stack)?);
        }
    }
    let grows = |looks: &[u64]| looks[1] > looks[0] + AGENT_GROWTH_KIB;
    ensure!(!agent_kib.windows(2).all(grows), "the agent grows without end: {agent_kib:?} KiB");
    client.destroy(&id).await?;
    churn::is_as_before(stack, &before, "left by a hundred pauses").await
}

async fn look_closely(
    client: &Client,
    id: &str,
    round: usize,
    counter: &mut Counter,
    counting: &Life,
) -> Result<()> {
    counter.goes_on(client, id).await?;
    client.sh(id, VERIFY).await.context("content that nobody changed")?;
    for log in ["/run/rounds", "/root/rounds"] {
        client
            .sh(id, &format!("seq 1 {round} | cmp - {log}"))
            .await
            .context("what was written in each round")?;
    }
    let now = self::counting(client, id).await?;
    ensure!(now == *counting, "{counting:?} has become {now:?}");
    Ok(())
}

/// What tells a process from all others, in this boot of a guest and in any other.
#[derive(Debug, PartialEq, Eq)]
struct Life {
    pid: i64,
    /// Of the process, in ticks since boot, and the boot's id.
    started: String,
}

/// The one process that runs.
async fn counting(client: &Client, id: &str) -> Result<Life> {
    let processes = client.processes(id).await?;
    let mut running = processes.iter().filter(|process| process["running"] == true);
    let (Some(only), None) = (running.next(), running.next()) else {
        anyhow::bail!("not exactly one process runs: {processes:?}");
    };
    let pid = only["pid"].as_i64().context("a pid")?;
    let line = format!("cut -d ' ' -f 22 /proc/{pid}/stat; cat /proc/sys/kernel/random/boot_id");
    Ok(Life { pid, started: client.sh(id, &line).await? })
}

fn agent_memory(stack: &Stack) -> Result<u64> {
    procfs::resident_kib(stack.host().pid()?).context("memory of the agent")
}
