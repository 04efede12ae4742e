//! The life of a capsule.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::graphql::{Client, Exec, ProcessEvent};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// Patience with the reaper, which acts when a timeout has passed, on a busy machine.
const REAPED: Duration = Duration::from_secs(60);

/// And with anything else.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn runs_and_ends(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let capsule = client
        .create(
            json!({ "name": "first", "vcpus": 1, "memoryMib": 256, "labels": { "purpose": "lifecycle" } }),
        )
        .await?;
    ensure!(capsule.id.starts_with("cl-") && capsule.id.len() == 28, "{}", capsule.id);
    ensure!(capsule.template.name == "minimal" && capsule.template.id.starts_with("tpl-"), "{capsule:?}");
    ensure!((capsule.vcpus, capsule.memory_mib, capsule.timeout_sec) == (1, 256, 0), "{capsule:?}");
    ensure!(
        capsule.name.as_deref() == Some("first") && capsule.labels["purpose"] == "lifecycle",
        "{capsule:?}"
    );
    ensure!(capsule.host.as_ref().is_some_and(|host| host.id == stack.host().id()), "{capsule:?}");
    ensure!(capsule.started_at.is_some() && capsule.cause.is_none(), "{capsule:?}");
    ensure!(client.sh(&capsule.id, "echo hello").await? == "hello");
    ensure!(stack.vmm_of(&capsule.id).is_some(), "a running capsule without a VMM");

    let destroyed = client.destroy(&capsule.id).await?;
    ensure!(destroyed.state == "STOPPED", "{destroyed:?}");
    ensure!(stack.vmm_of(&capsule.id).is_none(), "the VMM of a destroyed capsule is still there");
    ensure!(!stack.host().record_path(&capsule.id).exists(), "a destroyed capsule left its record");
    let refused = client.refused(EXEC, json!({ "id": capsule.id })).await?;
    ensure!(["FAILED_PRECONDITION", "NOT_FOUND"].contains(&refused.first().code()), "{refused}");
    Ok(())
}

const EXEC: &str = "mutation($id: ID!) { exec(input: { capsuleId: $id, command: \"true\" }) { pid } }";

/// A process that counts in a variable of its own, and one that writes to a file nobody else can open,
/// go on after a pause with the same pids: memory, registers and descriptors are what they were.
pub async fn goes_on_over_pause_and_resume(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let counting = "i=0; while :; do i=$((i+1)); echo $i > /run/count.new; mv /run/count.new /run/count; sleep 0.05; done";
    let (counter, _) = client.start(Exec::shell(&id, counting)).await?;
    let holding = "exec 3>/root/held; rm /root/held; while :; do echo tick >&3; sleep 0.05; done";
    let (holder, _) = client.start(Exec::shell(&id, holding)).await?;
    wait::until_true("both processes at work", PATIENCE, async || {
        Ok(count(client, &id).await? > 0 && held(client, &id, holder).await? > 0)
    })
    .await?;

    for round in 1..=3 {
        let (counted, written) = (count(client, &id).await?, held(client, &id, holder).await?);
        let paused = client.pause(&id).await?;
        ensure!(paused.state == "PAUSED", "round {round}: {paused:?}");
        vmm_ended(&stack, &id).await?;
        let resumed = client.resume(&id).await?;
        ensure!(resumed.state == "RUNNING", "round {round}: {resumed:?}");

        let counted_on = count(client, &id).await?;
        ensure!(counted_on >= counted, "round {round}: counted {counted}, then {counted_on}");
        wait::until_true(format!("round {round}: both going on"), PATIENCE, async || {
            Ok(count(client, &id).await? > counted_on && held(client, &id, holder).await? > written)
        })
        .await?;
        let processes = client.processes(&id).await?;
        for pid in [counter, holder] {
            let process = processes.iter().find(|process| process["pid"] == pid);
            ensure!(process.is_some_and(|process| process["running"] == true), "{pid} in {processes:?}");
        }
    }
    client.destroy(&id).await?;
    Ok(())
}

/// A capsule is paused as soon as it is safe on disk; its VMM is taken apart right after.
async fn vmm_ended(stack: &Stack, id: &str) -> Result<()> {
    let gone = async || Ok(stack.vmm_of(id).is_none());
    wait::until_true("the end of a paused capsule's VMM", PATIENCE, gone).await
}

async fn count(client: &Client, id: &str) -> Result<u64> {
    client.sh(id, "cat /run/count").await?.parse().context("a count")
}

async fn held(client: &Client, id: &str, pid: i64) -> Result<u64> {
    client.sh(id, &format!("stat -L -c %s /proc/{pid}/fd/3")).await?.parse().context("a size")
}

/// Looking at a capsule is no activity; a ping is.
pub async fn is_paused_when_idle(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    // One with a timeout from the beginning may be paused before anybody comes to use it.
    let unused = client.create_as_answered(json!({ "timeoutSec": 4 })).await?;
    ensure!(unused.timeout_sec == 4, "{unused:?}");
    let id = client.create(json!({})).await?.id;
    ensure!(client.set_timeout(&id, 4).await?.timeout_sec == 4);
    let begun = Instant::now();
    // Pinged for twice its timeout, it is kept.
    while begun.elapsed() < Duration::from_secs(8) {
        let capsule = client.ping(&id).await?;
        ensure!(capsule.state == "RUNNING", "paused in spite of pings: {capsule:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for id in [&id, &unused.id] {
        wait::until_true("an idle capsule paused while being looked at", REAPED, async || {
            Ok(client.capsule(id).await?.context("the capsule")?.state == "PAUSED")
        })
        .await?;
        vmm_ended(&stack, id).await?;
    }

    ensure!(client.set_timeout(&id, 0).await?.timeout_sec == 0);
    client.resume(&id).await?;
    ensure!(client.capsule(&id).await?.context("the capsule")?.timeout_sec == 0);
    client.destroy(&id).await?;
    client.destroy(&unused.id).await?;
    Ok(())
}

/// Someone attached, or a process that asked for it, is activity for as long as it lasts.
pub async fn stays_awake_while_used(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let mut stream = client.exec_stream(Exec::shell(&id, "sleep 8; echo done; read -r _")).await?;
    let (_, tag) = stream.started().await?;
    client.set_timeout(&id, 3).await?;
    let said = stream.next_within(PATIENCE).await?;
    ensure!(
        matches!(&said, Some(ProcessEvent::Output { data, .. }) if data == b"done\n"),
        "an attached capsule was paused: {said:?}"
    );
    // Somebody is attached until there is time for what comes next.
    client.set_timeout(&id, 0).await?;
    client.close_stdin(&id, &tag).await?;
    ensure!(stream.collect(PATIENCE).await?.exit.is_some());

    // The process ends by itself; until then nobody is attached.
    let (pid, _) =
        client.start(Exec::shell(&id, "sleep 8; touch /root/kept").with("keepAwake", true)).await?;
    client.set_timeout(&id, 3).await?;
    wait::until_true("paused once the process had ended", REAPED + REAPED, async || {
        Ok(client.capsule(&id).await?.context("the capsule")?.state == "PAUSED")
    })
    .await?;
    client.set_timeout(&id, 0).await?;
    client.resume(&id).await?;
    client.sh(&id, "test -e /root/kept").await.with_context(|| format!("{pid} was cut short by a pause"))?;
    client.destroy(&id).await?;
    Ok(())
}

pub async fn changes_of_state_are_repeatable(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /root/file").await?;
    for _ in 0..2 {
        ensure!(client.pause(&id).await?.state == "PAUSED");
    }
    for _ in 0..2 {
        ensure!(client.resume(&id).await?.state == "RUNNING");
    }
    ensure!(client.sh(&id, "cat /root/file").await? == "kept");
    client.pause(&id).await?;
    // A paused capsule is destroyed as well as a running one, and so is a destroyed one.
    for _ in 0..2 {
        ensure!(client.destroy(&id).await?.state == "STOPPED");
    }
    ensure!(!stack.host().dir().join("data/snapshots").join(&id).exists(), "the snapshot is still there");
    Ok(())
}
