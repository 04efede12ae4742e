//! The agent dies or is told to end.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use wrenn_tests::graphql::{Client, Collected, Exec, Failure, ProcessEvent, ProcessStream};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The longest anything may take to be noticed, or to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Output with a known text: `lines` lines of a KiB each, slow enough that what the guest keeps (1 MiB)
/// covers an agent's absence.
fn talker(id: &str, lines: usize) -> Exec {
    let line = format!(
        "p=$(head -c 1000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt {lines} ]; do echo $i $p; i=$((i+1)); sleep 0.02; done"
    );
    Exec::shell(id, &line)
}

fn talk(lines: usize) -> Vec<u8> {
    let padding = "x".repeat(1000);
    (0..lines).flat_map(|i| format!("{i} {padding}\n").into_bytes()).collect()
}

async fn read_some(stream: &mut ProcessStream, collected: &mut Collected, bytes: usize) -> Result<()> {
    let wanted = collected.stdout.len() + bytes;
    while collected.stdout.len() < wanted {
        collected.take(stream.next_within(PATIENCE).await?.context("ended early")?)?;
    }
    Ok(())
}

/// Streams fail with a typed cause; the capsules and their processes do not notice; `after` gives the rest.
pub async fn killed_while_output_flows(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let (busy, idle, paused) = (create(client).await?, create(client).await?, create(client).await?);
    client.sh(&idle, "echo kept > /run/in-memory").await?;
    client.pause(&paused).await?;
    let vmms = [stack.vmm_of(&busy), stack.vmm_of(&idle)];
    let lines = 400;
    let mut stream = client.exec_stream(talker(&busy, lines)).await?;
    let (pid, tag) = stream.started().await?;
    let mut collected = Collected::default();
    read_some(&mut stream, &mut collected, 50_000).await?;

    stack.host().kill9().await?;
    stream.broken_off(&mut collected, PATIENCE).await?;
    let refused = client.exec(Exec::shell(&idle, "true")).await.err().context("exec without an agent")?;
    let refused = refused.downcast::<Failure>()?;
    ensure!(refused.first().code() == "UNAVAILABLE", "{refused}");
    ensure!([stack.vmm_of(&busy), stack.vmm_of(&idle)] == vmms, "a VMM ended with its agent");

    stack.host().start(None).await?;
    back_in_service(client, &busy).await?;
    ensure!([stack.vmm_of(&busy), stack.vmm_of(&idle)] == vmms, "a capsule was not adopted but replaced");
    let rest =
        client.process_output(&busy, &tag, Some(collected.next_offset())).await?.collect(PATIENCE).await?;
    ensure!(rest.pid == Some(pid) && rest.gaps.is_empty(), "{:?} {:?}", rest.pid, rest.gaps);
    let got = [collected.stdout, rest.stdout].concat();
    ensure!(got == talk(lines), "{} bytes of {}", got.len(), talk(lines).len());
    ensure!(
        rest.exit == Some(ProcessEvent::Exited { exit_code: Some(0), signal: None, cause: None }),
        "{:?}",
        rest.exit
    );
    ensure!(client.sh(&idle, "cat /run/in-memory").await? == "kept");
    // What was paused is still known, and everything can be done with what was adopted.
    client.resume(&paused).await?;
    client.pause(&idle).await?;
    client.resume(&idle).await?;
    ensure!(client.sh(&idle, "cat /run/in-memory").await? == "kept");
    Ok(())
}

/// A process that keeps its capsule awake does so under the next agent, too, and nothing else counts as idle time that
/// was none.
pub async fn killed_while_a_process_keeps_awake(stack: &Stack) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(4);
    let client = stack.client();
    let id = create(client).await?;
    let vmm = stack.vmm_of(&id);
    client.start(Exec::shell(&id, "sleep 600").with("keepAwake", true)).await?;
    client.set_timeout(&id, TIMEOUT.as_secs().cast_signed()).await?;
    // The record says nothing of what keeps it awake meanwhile.
    tokio::time::sleep(TIMEOUT * 2).await;
    stack.host().kill9().await?;
    stack.host().start(None).await?;
    let begun = Instant::now();
    while begun.elapsed() < TIMEOUT * 2 {
        let capsule = client.capsule(&id).await?.context("the capsule")?;
        ensure!(capsule.state == "RUNNING", "{:?} after its adoption: {capsule:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(stack.vmm_of(&id) == vmm, "the capsule was replaced");
    Ok(())
}

/// What cannot be read is nobody's, but not nothing: a paused capsule whose record is damaged keeps what there is of it.
pub async fn killed_and_a_record_damaged(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let (damaged, whole) = (create(client).await?, create(client).await?);
    client.pause(&damaged).await?;
    let record = stack.host().record_path(&damaged);
    let data = record.ancestors().nth(3).context("the data directory")?;
    let snapshot = data.join("snapshots").join(&damaged);
    let left = || Ok::<_, anyhow::Error>(fs::read_dir(&snapshot).context("its snapshot")?.count());
    let before = left()?;
    ensure!(before > 0, "a paused capsule has a snapshot");
    stack.host().kill9().await?;
    fs::write(&record, "{ \"version\": ").context("damaging the record")?;

    stack.host().start(None).await?;
    back_in_service(client, &whole).await?;
    ensure!(left()? == before, "something of its snapshot is gone");
    ensure!(record.exists(), "the record is gone");
    let log = fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    ensure!(log.contains("kept for a person to look at"), "nobody was told");
    // So that the stack can be looked through for what it leaves.
    stack.host().kill9().await?;
    for left in [&snapshot, &record.parent().context("its home")?.to_owned()] {
        fs::remove_dir_all(left).with_context(|| format!("removing {}", left.display()))?;
    }
    stack.host().start(None).await?;
    back_in_service(client, &whole).await
}

/// Whatever was half done, several things at once, is finished or undone by the next life.
pub async fn killed_amid_changes(stack: &Stack) -> Result<()> {
    super::api::crash_amid_changes(stack, async || {
        stack.host().kill9().await?;
        // The next life is to be held up by nothing.
        stack.host().order("")?;
        stack.host().start(None).await
    })
    .await
}

/// From the moment its snapshot is complete a capsule is paused, even if nobody wrote that down and its machine is gone
/// with the agent, as when the host fails.
pub async fn killed_with_the_vmm_once_a_pause_was_saved(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = create(client).await?;
    client.sh(&id, "echo kept > /run/in-memory; echo kept > /root/on-disk").await?;
    let vmm = stack.vmm_of(&id).context("a running capsule has a VMM")?;
    stack.host().order("pause.committed=kill")?;
    // Its answer is lost with the agent.
    let _ = client.pause(&id).await;
    stack.host().died(PATIENCE).await?;
    stack.host().order("")?;
    kill(Pid::from_raw(vmm.cast_signed()), Signal::SIGKILL).context("killing the VMM")?;
    wait::until_true("the VMM's end", PATIENCE, async || Ok(stack.vmm_of(&id).is_none())).await?;

    stack.host().start(None).await?;
    super::api::settled(stack).await?;
    let capsule = client.capsule(&id).await?.context("the capsule")?;
    ensure!(capsule.state == "PAUSED", "{capsule:?}");
    client.resume(&id).await?;
    ensure!(client.sh(&id, "cat /run/in-memory /root/on-disk").await? == "kept\nkept");
    Ok(())
}

/// SIGTERM leaves capsules running, as a crash does.
pub async fn told_to_end_keeps_capsules(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = create(client).await?;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    let vmm = stack.vmm_of(&id);
    ensure!(vmm.is_some());
    stack.host().terminate(PATIENCE).await?;
    ensure!(stack.vmm_of(&id) == vmm, "the capsule ended with its agent");
    stack.host().start(None).await?;
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == vmm && client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}

/// Told so, the agent pauses them instead, and nothing of theirs is lost.
pub async fn told_to_end_pauses_capsules(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let ids = [create(client).await?, create(client).await?];
    for id in &ids {
        client.sh(id, "echo kept > /run/in-memory").await?;
    }
    stack.host().terminate(PATIENCE).await?;
    ensure!(stack.vmm_count() == 0, "a VMM outlived the agent that was to pause it");
    stack.host().start(None).await?;
    for id in &ids {
        wait::until_true(format!("{id} known as paused"), PATIENCE, async || {
            Ok(client.capsule(id).await?.context("the capsule")?.state == "PAUSED")
        })
        .await?;
        client.resume(id).await?;
        ensure!(client.sh(id, "cat /run/in-memory").await? == "kept");
    }
    Ok(())
}

async fn create(client: &Client) -> Result<String> {
    Ok(client.create(json!({})).await?.id)
}

/// Waits until a capsule can be used again after its agent came back.
pub async fn back_in_service(client: &Client, id: &str) -> Result<()> {
    wait::until_true(format!("{id} in service again"), PATIENCE, async || {
        Ok(client.sh(id, "echo here").await? == "here")
    })
    .await?;
    let capsule = client.capsule(id).await?.context("the capsule")?;
    ensure!(capsule.state == "RUNNING", "in service, but {capsule:?}");
    Ok(())
}
