//! An agent comes back to a capsule that does not answer it at once.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use wrenn_tests::graphql::Client;
use wrenn_tests::stack::{Host, Stack};
use wrenn_tests::wait;

use super::agent::back_in_service;

const PATIENCE: Duration = Duration::from_secs(60);

/// What answers within this time is not silent.
const PROMPT: Duration = Duration::from_secs(5);

/// Longer than the grace that guests have from an impatient agent, and than any command to a VMM may take.
const STILL: Duration = Duration::from_secs(12);

/// The shortest grace there is, in seconds, and how long after a new agent has come a guest that stays silent is waited
/// for, with some to spare: 60 of it.
const SHORT_GRACE: &str = "1";
const GIVEN_UP: Duration = Duration::from_secs(120);

const GRACE: &str = "WRENN_RECONNECT_GRACE";

/// Starts an agent for which guests are soon silent: what is not about that is done under another one.
pub async fn start_impatient(host: &Host) -> Result<()> {
    host.start_with(GRACE, "5").await
}

/// Waits until a guest answers nobody any more.
pub async fn silent(client: &Client, id: &str) -> Result<()> {
    wait::until_true("a silent guest", PATIENCE, async || {
        Ok(tokio::time::timeout(PROMPT, client.sh(id, "true")).await.is_err())
    })
    .await
}

/// A guest that is silent for good: its machine is ended, its disk kept until it is destroyed.
pub async fn of_a_guest_ends_at_last(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let (id, other) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    ensure!(stack.vmm_of(&id).is_some(), "a running capsule has a VMM");
    // A command's parent is the daemon.
    client.sh(&id, "(sleep 1; kill -STOP $PPID) > /dev/null 2>&1 < /dev/null &").await?;
    silent(client, &id).await?;

    stack.host().kill9().await?;
    stack.host().start_with(GRACE, SHORT_GRACE).await?;
    ensure!(client.capsule(&id).await?.context("the capsule")?.state == "RUNNING", "given up at once");
    back_in_service(client, &other).await?;
    wait::until_true("the end of a silent guest", GIVEN_UP, async || {
        Ok(client.capsule(&id).await?.context("the capsule")?.state == "ERROR")
    })
    .await?;
    let cause = client.capsule(&id).await?.and_then(|capsule| capsule.cause).context("its cause")?;
    ensure!(cause.code == "NOT_ADOPTED" && cause.message.contains("silent for too long"), "{cause:?}");
    ensure!(stack.vmm_of(&id).is_none(), "its machine runs on");
    let disk = stack.host().record_path(&id).with_file_name("disk.ext4");
    ensure!(disk.exists(), "its disk is gone");
    back_in_service(client, &other).await?;
    client.destroy(&id).await?;
    ensure!(!disk.exists(), "its disk is left");
    Ok(())
}

/// The guest's daemon stands still for longer than the agent needs to come back and to lose patience.
pub async fn of_a_guest_is_waited_for(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    let vmm = stack.vmm_of(&id);
    // A command's parent is the daemon.
    let line = "(sleep 1; kill -STOP $PPID; sleep 35; kill -CONT $PPID) > /dev/null 2>&1 < /dev/null &";
    client.sh(&id, line).await?;
    silent(client, &id).await?;

    stack.host().kill9().await?;
    start_impatient(stack.host()).await?;
    let log = fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    ensure!(log.contains("its guest does not answer yet"), "the guest was not silent");
    let capsule = client.capsule(&id).await?.context("the capsule")?;
    ensure!(capsule.state == "RUNNING", "{capsule:?}");
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == vmm, "the capsule was replaced");
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    client.pause(&id).await?;
    stack.host().kill9().await?;
    stack.host().start(None).await?;
    wait::until("a resume under the next agent", PATIENCE, async || client.resume(&id).await.map(Some))
        .await?;
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}

/// A VMM that lives and cannot be taken up any more is ended, but not what its capsule has on disk.
pub async fn of_a_vmm_for_good_costs_no_disk(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let (id, other) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let socket = stack.host().qmp_socket(&id);
    stack.host().kill9().await?;
    fs::remove_file(&socket).with_context(|| format!("removing {}", socket.display()))?;
    stack.host().start(None).await?;
    back_in_service(client, &other).await?;
    wait::until_true("a capsule in error", PATIENCE, async || {
        Ok(client.capsule(&id).await?.context("the capsule")?.state == "ERROR")
    })
    .await?;
    let cause = client.capsule(&id).await?.and_then(|capsule| capsule.cause).context("its cause")?;
    ensure!(cause.code == "NOT_ADOPTED", "{cause:?}");
    ensure!(stack.vmm_of(&id).is_none(), "its machine runs on");
    let disk = stack.host().record_path(&id).with_file_name("disk.ext4");
    ensure!(disk.exists(), "its disk is gone");
    client.destroy(&id).await?;
    ensure!(!disk.exists(), "its disk is left");
    Ok(())
}

/// The VMM itself does, as on a host that has no CPU for it.
pub async fn of_a_vmm_is_waited_for(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    let vmm = stack.vmm_of(&id).context("a running capsule has a VMM")?;
    let signal = |signal| kill(Pid::from_raw(vmm.cast_signed()), signal).context("signalling the VMM");
    stack.host().kill9().await?;
    signal(Signal::SIGSTOP)?;
    let goes_on = async {
        tokio::time::sleep(STILL).await;
        signal(Signal::SIGCONT)
    };
    let (started, continued) = tokio::join!(start_impatient(stack.host()), goes_on);
    started.and(continued)?;
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == Some(vmm), "the capsule was replaced");
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}
