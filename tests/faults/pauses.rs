//! Something comes in between of a pause or of a checkpoint, with the vCPUs stopped.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::net::TcpStream;
use wrenn_tests::graphql::{Client, Exec, ProcessEvent};
use wrenn_tests::stack::{CapsuleRecord, Stack};
use wrenn_tests::wait;

use super::agent::back_in_service;
use super::api::settled;
use super::silence::{silent, start_impatient};

const PATIENCE: Duration = Duration::from_secs(60);

/// How long a guest stands still: far more than its clock may be wrong afterwards.
const STILL: Duration = Duration::from_secs(4);

/// Seconds by which a guest's clock may differ from the host's.
const TOLERANCE: u64 = 1;

pub async fn with_an_absent_agent_lose_no_time(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let vmm = stack.vmm_of(&id);
    stack.host().order("pause.stopped=kill")?;
    // Its answer is lost with the agent.
    let _ = client.pause(&id).await;
    stack.host().died(PATIENCE).await?;
    stack.host().order("")?;
    tokio::time::sleep(STILL).await;

    stack.host().start(None).await?;
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == vmm, "the capsule was replaced");
    has_the_right_time(client, &id, 0).await
}

pub async fn that_fail_late_lose_no_time(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let vmm = stack.vmm_of(&id);
    stack.host().order(&format!("pause.stopped=delay({}ms)*1;pause.saved=error*1", STILL.as_millis()))?;
    client.pause(&id).await.err().context("the pause was to fail")?;
    stack.host().order("")?;
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == vmm, "the capsule was replaced");
    has_the_right_time(client, &id, 0).await
}

/// For a checkpoint a guest stands still as well. Its clock is its own to set, and its connections stay.
pub async fn for_a_checkpoint_lose_no_time(stack: &Stack) -> Result<()> {
    const AGO: u64 = 3600;
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, &format!("date -s \"@$(($(date +%s) - {AGO}))\"")).await?;
    has_the_right_time(client, &id, AGO).await?;
    let mut stream = client.exec_stream(Exec::argv(&id, &["/bin/cat"])).await?;
    let (_, tag) = stream.started().await?;

    stack.host().order(&format!("moment.stopped=delay({}ms)*1", STILL.as_millis()))?;
    let began = Instant::now();
    client.snapshot(&id, "taken-slowly").await?;
    ensure!(began.elapsed() >= STILL, "the guest did not stand still");
    stack.host().order("")?;

    has_the_right_time(client, &id, AGO).await?;
    client.write_stdin(&id, &tag, 0, b"still here").await?;
    let event = stream.next_within(PATIENCE).await?;
    ensure!(matches!(&event, Some(ProcessEvent::Output { data, .. }) if data == b"still here"), "{event:?}");
    Ok(())
}

/// Whoever is root in a guest cannot keep it from being paused by stopping the daemon.
pub async fn of_a_silent_guest_lose_nothing(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    // A command's parent is the daemon, and it goes on soon after the pause has waited for it in vain.
    let line = "(sleep 1; kill -STOP $PPID; sleep 48; kill -CONT $PPID) > /dev/null 2>&1 < /dev/null &";
    client.sh(&id, line).await?;
    silent(client, &id).await?;
    client.pause(&id).await?;
    let log = fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    ensure!(log.contains("pausing a guest that does not prepare for it"), "the guest was not silent");
    client.resume(&id).await?;
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}

/// Nor by being rid of the daemon: what is lost is what only the daemon has.
pub async fn of_a_guest_that_refuses_lose_nothing(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /root/on-disk").await?;
    let line =
        "mount --bind /bin/true /usr/local/bin/envd; (sleep 1; kill -9 $PPID) > /dev/null 2>&1 < /dev/null &";
    client.sh(&id, line).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    client.pause(&id).await?;
    let log = fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    ensure!(log.contains("pausing a guest that does not prepare for it"), "the guest has prepared for it");
    ensure!(client.capsule(&id).await?.context("the capsule")?.state == "PAUSED");
    Ok(())
}

/// Where a guest is told to fall silent, and to answer again, while no call reaches it: the first to come there stops the
/// daemon, whose child listens, and the second lets it go on.
const SWITCH: u16 = 7000;
const LISTENING: &str = "use IO::Socket::INET; $| = 1; \
    my $s = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 2, ReuseAddr => 1) or die \"listen: $@\"; \
    print 'ready'; for my $signal ('STOP', 'CONT') { $s->accept; kill $signal => getppid }";

async fn begin_listening(client: &Client, id: &str) -> Result<()> {
    let listener = Exec::argv(id, &["perl", "-e", LISTENING, &SWITCH.to_string()]);
    let (_, tag) = client.start(listener).await?;
    let mut stream = client.process_output(id, &tag, None).await?;
    stream.started().await?;
    let event = stream.next_within(PATIENCE).await?;
    ensure!(matches!(&event, Some(ProcessEvent::Output { data, .. }) if data == b"ready"), "{event:?}");
    Ok(())
}

async fn switch(stack: &Stack, id: &str) -> Result<()> {
    let guest = CapsuleRecord::read(&stack.host().record_path(id))?.guest_address();
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect((guest, SWITCH))).await;
    connected.context("nobody listens in the guest")?.context("connecting to the guest").map(drop)
}

/// A guest that takes longer than the grace to answer after a pause that failed, as on a host that has much to do.
pub async fn that_fail_wait_for_a_slow_guest(stack: &Stack) -> Result<()> {
    let (client, host) = (stack.client(), stack.host());
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    let vmm = stack.vmm_of(&id);
    host.kill9().await?;
    start_impatient(host).await?;
    back_in_service(client, &id).await?;
    begin_listening(client, &id).await?;
    host.order("pause.prepared=delay(8000ms)*1;pause.saved=error*1")?;
    // Between what the pause asks of it and the end of its vCPUs.
    let fall_silent = async {
        wait::until_true("a guest that is prepared", PATIENCE, async || {
            Ok(host.passed("pause.prepared")? > 0)
        })
        .await?;
        switch(stack, &id).await
    };
    let (paused, fallen) = tokio::join!(client.pause(&id), fall_silent);
    fallen?;
    paused.err().context("the pause was to fail")?;
    host.order("")?;
    let log = fs::read_to_string(host.log()).context("reading the agent's log")?;
    ensure!(
        log.contains("the capsule goes on, but its guest does not answer yet"),
        "the guest was not silent"
    );
    ensure!(client.capsule(&id).await?.context("the capsule")?.state == "RUNNING", "given up");
    switch(stack, &id).await?;
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == vmm, "the capsule was replaced");
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}

/// The machine that goes on counts for more than the complete snapshot behind it, also for an agent that knows of no
/// failure.
pub async fn that_failed_are_not_taken_for_complete(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    let vmm = stack.vmm_of(&id);
    stack.host().order("pause.committed=error*1;pause.thawed=kill")?;
    let _ = client.pause(&id).await;
    stack.host().died(PATIENCE).await?;
    stack.host().order("")?;

    stack.host().start(None).await?;
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == vmm, "the capsule fell back to its snapshot");
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    // And it can be paused again.
    client.pause(&id).await?;
    client.resume(&id).await?;
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}

pub async fn are_finished_by_an_agent_told_to_end(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let host = stack.host();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory; echo kept > /root/on-disk").await?;
    host.order("pause.saved=delay(3000ms)*1")?;
    let amid_it = async {
        wait::until_true("a pause under way", PATIENCE, async || Ok(host.passed("pause.saved")? > 0)).await?;
        host.terminate(PATIENCE).await
    };
    // The answer may be lost with the agent.
    let (ended, _answer) = tokio::join!(amid_it, client.pause(&id));
    ended?;
    ensure!(stack.vmm_of(&id).is_none(), "the agent ended before the pause did");
    host.order("")?;

    host.start(None).await?;
    settled(stack).await?;
    let capsule = client.capsule(&id).await?.context("the capsule")?;
    ensure!(capsule.state == "PAUSED", "{capsule:?}");
    client.resume(&id).await?;
    ensure!(client.sh(&id, "cat /run/in-memory /root/on-disk").await? == "kept\nkept");
    Ok(())
}

/// What a guest takes for now lies between the moments of asking and of knowing, so many seconds ago.
pub async fn has_the_right_time(client: &Client, id: &str, ago: u64) -> Result<()> {
    let now = || Ok::<u64, anyhow::Error>(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - ago);
    let earliest = now()? - TOLERANCE;
    let time: u64 = client.sh(id, "date +%s").await?.parse().context("the guest's time")?;
    let latest = now()? + TOLERANCE;
    ensure!((earliest..=latest).contains(&time), "the guest's clock says {time}, not {earliest} to {latest}");
    Ok(())
}
