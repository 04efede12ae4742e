//! A restore goes wrong within the guest.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use wrenn_tests::graphql::Capsule;
use wrenn_tests::inventory::HostInventory;
use wrenn_tests::procfs;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

use super::api::settled;
use super::churn::{POOLED, at_rest, comparable};

const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough to find a process and to stop it.
const STOPPING: Duration = Duration::from_secs(3);

/// Two copies that gave the same random numbers would be worse than none.
pub async fn without_fresh_random_numbers_are_not_served(stack: &Stack) -> Result<()> {
    let client = stack.client();
    stack.host().order("")?;
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    client.pause(&id).await?;
    let before = at_rest(stack).await?;

    stack.host().order("handover.reseeded=error")?;
    let passed = || stack.host().passed("handover.reseeded");
    client.create(json!({})).await.err().context("created without fresh random numbers")?;
    let creates = passed()?;
    client.resume(&id).await.err().context("resumed without fresh random numbers")?;
    ensure!(creates > 0 && passed()? > creates, "something else failed");
    stack.host().order("")?;
    settled(stack).await?;
    wait::until_true("the host as it was", PATIENCE, async || {
        let now = HostInventory::take(stack.scope())?;
        comparable(&before).difference(&comparable(&now)).into_result("left by restores that failed")?;
        for kind in POOLED {
            let (was, is) = (before.count(kind), now.count(kind));
            ensure!(was == is, "{was} times {kind} before, {is} now");
        }
        Ok(true)
    })
    .await?;

    let capsule = client.capsule(&id).await?.context("the capsule")?;
    ensure!(capsule.state == "PAUSED", "{capsule:?}");
    client.resume(&id).await?;
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}

/// Not by what starts the machine, which has answered already.
pub async fn that_hang_are_tried_again(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    client.pause(&id).await?;

    // The snapshot outlives any number of them.
    let before = retries(stack)?.len();
    resume_with_hangs(stack, &id, 2).await.err().context("resumed by a machine that hangs")?;
    ensure!(client.capsule(&id).await?.context("the capsule")?.state == "PAUSED");
    let between = retries(stack)?.len();
    resume_with_hangs(stack, &id, 1).await?;
    let retries = retries(stack)?;
    ensure!((between, retries.len()) == (before + 1, before + 2), "not once each: {retries:?}");
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    let served = page_server_of(&id).is_some();
    let in_time = |retry: &String| retry.contains("the page server hangs") == served;
    ensure!(retries[before..].iter().all(in_time), "noticed late: {retries:?}");
    Ok(())
}

/// What the agent has said of restores that it tried once more.
fn retries(stack: &Stack) -> Result<Vec<String>> {
    let log = fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    Ok(log.lines().filter(|line| line.contains("a restore is tried again")).map(str::to_owned).collect())
}

/// Resumes while so many machines, with their page servers, stop before their guests have answered.
async fn resume_with_hangs(stack: &Stack, id: &str, hangs: usize) -> Result<Capsule> {
    const RESTORED: &str = "launch.restored";
    let host = stack.host();
    let before = host.passed(RESTORED)?;
    host.order(&format!("{RESTORED}=delay({}ms)*{hangs}", STOPPING.as_millis()))?;
    let stop = async {
        for hang in 1..=hangs {
            wait::until_true("a restored machine", PATIENCE, async || {
                Ok(host.passed(RESTORED)? >= before + hang)
            })
            .await?;
            let vmm = stack.vmm_of(id).context("the VMM of a restored machine")?;
            for pid in page_server_of(id).into_iter().chain([vmm]) {
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).context("stopping a machine")?;
            }
        }
        host.order("")
    };
    let (resumed, stopped) = tokio::join!(stack.client().resume(id), stop);
    stopped?;
    resumed
}

/// It is told of files in the capsule's home.
fn page_server_of(capsule: &str) -> Option<u32> {
    procfs::pids().into_iter().find(|pid| {
        let line = procfs::command_line(*pid);
        line.contains(" page-server ") && line.contains(capsule)
    })
}
