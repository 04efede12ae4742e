//! Output as it comes: complete, in order, in bounded memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_tests::graphql::{Client, Collected, Exec, Failure, Frame, OutputHash, ProcessEvent, Socket};
use wrenn_tests::procfs;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The longest a stream may be silent in these tests.
const SILENCE: Duration = Duration::from_secs(60);

const MIB: u64 = 1024 * 1024;

/// Bytes of each stream of a process that envd keeps.
const RING: u64 = MIB;

/// How much a process may have grown while a gibibyte went through it.
const GROWTH_KIB: u64 = 48 * 1024;

/// Resident memory envd promises to stay under.
const ENVD_KIB: u64 = 15 * 1024;

/// A random block of one MiB, repeated 1024 times with a number between: any byte that is lost, doubled or
/// out of order changes the hash.
pub async fn a_gibibyte_arrives_whole_in_flat_memory(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let block = client.exec(Exec::shell(&id, "head -c 1048576 /dev/urandom | tee /run/block")).await?;
    let expected = expected_hash(&block.stdout()?);

    let line = "i=0; while [ $i -lt 1024 ]; do echo block $i; cat /run/block; i=$((i+1)); done";
    let mut stream = client.exec_stream(Exec::shell(&id, line)).await?;
    stream.started().await?;
    let (api, agent) = (stack.api_pid()?, stack.host().pid()?);
    let mut hash = OutputHash::default();
    let (mut base, mut sampled) = (None, Instant::now());
    let exit = loop {
        match stream.next_within(SILENCE).await? {
            Some(ProcessEvent::Output { stream, sequence, data }) => {
                ensure!(stream == "STDOUT", "{stream}: {}", String::from_utf8_lossy(&data));
                hash.take(sequence, &data)?;
            }
            Some(other) => break other,
            None => bail!("the stream ended without an exit"),
        }
        // Buffers fill at first; from then on nothing may grow.
        if hash.length > 64 * MIB && sampled.elapsed() > Duration::from_secs(1) {
            sampled = Instant::now();
            let now = [resident(api)?, resident(agent)?];
            let base = *base.get_or_insert(now);
            for (name, (now, base)) in ["api", "agent"].iter().zip(now.iter().zip(&base)) {
                ensure!(*now < base + GROWTH_KIB, "{name} grew from {base} to {now} KiB");
            }
        }
    };
    ensure!(base.is_some(), "memory was never looked at");
    let envd = envd_peak(client, &id).await?;
    ensure!(envd < ENVD_KIB, "envd took up to {envd} KiB");
    ensure!(exit == ProcessEvent::Exited { exit_code: Some(0), signal: None, cause: None }, "{exit:?}");
    ensure!(hash.length > 1024 * MIB, "{} bytes", hash.length);
    ensure!(hash.finish() == expected, "the hash differs");
    client.destroy(&id).await?;
    Ok(())
}

fn expected_hash(block: &[u8]) -> String {
    let mut hash = Sha256::new();
    for number in 0..1024 {
        hash.update(format!("block {number}\n"));
        hash.update(block);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn resident(pid: u32) -> Result<u64> {
    procfs::resident_kib(pid).with_context(|| format!("memory of {pid}"))
}

/// The most memory the guest's daemon ever had resident, in KiB.
async fn envd_peak(client: &Client, id: &str) -> Result<u64> {
    let line = "for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in *envd*) grep VmHWM $p/status;; esac; done";
    let found = client.sh(id, line).await?;
    found.split_whitespace().nth(1).context("envd is not to be found")?.parse().context("its memory")
}

/// A process whose reader stops reading stops too, and nobody else's does. When the reader is gone, it goes on.
pub async fn a_reader_that_stops_holds_its_process_back(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let (id, neighbour) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let line =
        "i=0; while [ $i -lt 256 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i > /run/progress; done";
    let mut stream = client.exec_stream(Exec::shell(&id, line)).await?;
    stream.started().await?;
    ensure!(matches!(stream.next_within(SILENCE).await?, Some(ProcessEvent::Output { .. })));

    // From here on nobody reads the stream.
    let mut held_at = standstill(client, &id).await?;
    ensure!(held_at < 64, "{held_at} MiB went into buffers");
    // Neither the neighbour nor another process of the same capsule notices.
    for target in [&neighbour, &id] {
        let mut others = client.exec_stream(Exec::shell(target, "head -c 8388608 /dev/zero")).await?;
        let collected = others.collect(SILENCE).await?;
        ensure!(collected.stdout.len() as u64 == 8 * MIB, "{} bytes", collected.stdout.len());
        ensure!(client.sh(target, "echo here").await? == "here");
    }
    // A guest that had too much to do may have stood still before it was held back.
    while progress(client, &id).await? != held_at {
        held_at = standstill(client, &id).await?;
        ensure!(held_at < 64, "the process went on without a reader, to {held_at} MiB");
    }

    // The reader reads a while, then goes: a process without one is held back by nobody.
    let mut read = 0;
    while read < 8 * MIB {
        match stream.next_within(SILENCE).await? {
            Some(ProcessEvent::Output { data, .. }) => read += data.len() as u64,
            other => bail!("{other:?} while reading on"),
        }
    }
    drop(stream);
    wait::until_true("the process at its end", SILENCE, async || Ok(progress(client, &id).await? == 256))
        .await?;
    client.destroy(&id).await?;
    client.destroy(&neighbour).await?;
    Ok(())
}

async fn progress(client: &Client, id: &str) -> Result<u64> {
    client.sh(id, "cat /run/progress 2>/dev/null || echo 0").await?.parse().context("progress")
}

/// Where the process stands when it has not moved for three looks, half a second apart.
async fn standstill(client: &Client, id: &str) -> Result<u64> {
    let mut looks: Vec<u64> = Vec::new();
    wait::until("a process held back", SILENCE, async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        looks.push(progress(client, id).await?);
        Ok(looks.ends_with(&[looks[looks.len() - 1]; 4]).then(|| looks[looks.len() - 1]))
    })
    .await
}

pub async fn output_is_taken_up_again(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let line = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let (_, tag) = client.start(Exec::shell(&id, line)).await?;
    let mut first = client.process_output(&id, &tag, None).await?;
    let mut collected = Collected::default();
    while collected.stdout.len() < 300 {
        collected.take(first.next_within(SILENCE).await?.context("ended early")?)?;
    }
    drop(first);
    let rest =
        client.process_output(&id, &tag, Some(collected.next_offset())).await?.collect(SILENCE).await?;
    ensure!(rest.stdout_from == Some(collected.next_offset()) && rest.gaps.is_empty(), "{rest:?}");
    let expected: String = (0..100).map(|i| format!("line {i}\n")).collect();
    let got = [collected.stdout, rest.stdout].concat();
    ensure!(got == expected.as_bytes(), "{}", String::from_utf8_lossy(&got));
    client.destroy(&id).await?;
    Ok(())
}

/// Three MiB with nobody reading: the last one is kept, and the rest is said to be gone.
pub async fn what_is_lost_is_said(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let written = 3 * MIB + 12345;
    let line = format!("yes | head -c {written}; echo over > /run/over; exec sleep 1000");
    let (_, tag) = client.start(Exec::shell(&id, &line)).await?;
    wait::until_true("everything written", SILENCE, async || {
        Ok(client.exec(Exec::shell(&id, "test -e /run/over")).await?.exit_code == Some(0))
    })
    .await?;
    client.signal(&id, &tag, "SIGKILL").await?;
    let collected = client.process_output(&id, &tag, Some(0)).await?.collect(SILENCE).await?;
    let held = collected.stdout.len() as u64;
    ensure!(
        collected.gaps == [("STDOUT".to_owned(), 0, written - held)],
        "{:?}, held {held}",
        collected.gaps
    );
    ensure!(held == RING && collected.stdout_from == Some(written - held), "held {held}");
    let expected: Vec<u8> = b"y\n".iter().copied().cycle().take(written as usize).collect();
    ensure!(collected.stdout == expected[(written - held) as usize..], "other bytes than were written");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn every_reader_gets_everything(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let line = "read go; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done";
    let (_, tag) = client.start(Exec::shell(&id, line)).await?;
    let mut one = client.process_output(&id, &tag, None).await?;
    let mut two = client.process_output(&id, &tag, None).await?;
    one.started().await?;
    two.started().await?;
    client.write_stdin(&id, &tag, 0, b"go\n").await?;
    let (one, two) = tokio::try_join!(one.collect(SILENCE), two.collect(SILENCE))?;
    let expected: String = (0..2000).map(|i| format!("line {i}\n")).collect();
    ensure!(one.stdout == expected.as_bytes() && two.stdout == expected.as_bytes());
    ensure!(one.exit.is_some() && one.exit == two.exit);
    client.destroy(&id).await?;
    Ok(())
}

pub async fn streams_end_with_their_capsule(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let mut exec = client.exec_stream(Exec::argv(&id, &["sleep", "1000"])).await?;
    let (_, tag) = exec.started().await?;
    let mut follow = client.process_output(&id, &tag, None).await?;
    follow.started().await?;
    let pty = client.open_pty(&id, "exec sleep 1000").await?;
    let mut terminal = client.pty_output(&id, &pty, None).await?;
    terminal.started().await?;
    let files = "subscription($id: ID!) { watchDirectory(capsuleId: $id, path: \"/root\") { __typename } }";
    let metrics = "subscription($id: ID!) { capsuleMetrics(id: $id, range: M5) { at } }";
    let mut others = Vec::new();
    for (name, query) in [("watchDirectory", files), ("capsuleMetrics", metrics)] {
        let mut other = client.subscribe(query, json!({ "id": id })).await?;
        other.next_within(SILENCE).await?.with_context(|| format!("{name} ended at once"))?;
        others.push((name, other));
    }
    client.destroy(&id).await?;
    for stream in [&mut exec, &mut follow, &mut terminal] {
        stream.broken_off(&mut Collected::default(), Duration::from_secs(10)).await?;
    }
    for (name, other) in &mut others {
        let failure = loop {
            match other.next_within(Duration::from_secs(10)).await {
                Ok(Some(_)) => {}
                Ok(None) => bail!("{name} ended without a word"),
                Err(error) => break error.downcast::<Failure>()?,
            }
        };
        ensure!(failure.first().cause().is_some(), "{name} names no cause: {failure}");
    }
    Ok(())
}

/// The ring is in the guest's memory and is paused with it.
pub async fn output_goes_on_over_a_pause(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let line = "i=0; while [ $i -lt 150 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let mut stream = client.exec_stream(Exec::shell(&id, line)).await?;
    let (_, tag) = stream.started().await?;
    let mut collected = Collected::default();
    while collected.stdout.len() < 100 {
        collected.take(stream.next_within(SILENCE).await?.context("ended early")?)?;
    }
    client.pause(&id).await?;
    // What was on its way still comes; then the stream ends and says why.
    stream.broken_off(&mut collected, SILENCE).await?;
    client.resume(&id).await?;
    let rest =
        client.process_output(&id, &tag, Some(collected.next_offset())).await?.collect(SILENCE).await?;
    let expected: String = (0..150).map(|i| format!("line {i}\n")).collect();
    let got = [collected.stdout, rest.stdout].concat();
    ensure!(got == expected.as_bytes(), "{}", String::from_utf8_lossy(&got));
    client.destroy(&id).await?;
    Ok(())
}

/// On one connection: while one operation floods it, others are served and pings are answered.
pub async fn one_flood_starves_nobody_on_its_socket(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let (loud, quiet) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let query = "subscription($input: ExecInput!) { exec(input: $input) {
        __typename ... on ProcessOutput { data } ... on ProcessExited { exitCode } } }";
    let mut socket = Socket::connect(client).await?;
    let flood = Exec::shell(&loud, "while :; do head -c 1048576 /dev/zero; done");
    socket.start("flood", query, json!({ "input": flood.input() })).await?;
    let mut flooded = 0;
    while flooded < 64 {
        ensure!(matches!(next(&mut socket).await?, Frame::Next { .. }));
        flooded += 1;
    }
    let ticks = Exec::shell(&quiet, "for i in 1 2 3 4 5 6 7 8 9 10; do echo tick; sleep 0.1; done");
    socket.start("ticks", query, json!({ "input": ticks.input() })).await?;
    socket.send(json!({ "type": "ping" })).await?;
    let (mut seen, begun) = (String::new(), Instant::now());
    loop {
        match next(&mut socket).await? {
            Frame::Next { id, data } if id == "ticks" => seen.push_str(kind_of(&data)),
            Frame::Complete { id } if id == "ticks" => break,
            Frame::Next { .. } => {}
            other => bail!("{other:?} in the midst of a flood"),
        }
        ensure!(begun.elapsed() < SILENCE, "ten ticks took over {SILENCE:?} beside a flood: {seen}");
    }
    ensure!(seen.starts_with('S') && seen.contains('O') && seen.ends_with('E'), "{seen}");
    ensure!(socket.pongs() == 1, "the ping was not answered");

    // The client ends one operation; the connection serves on.
    socket.complete("flood").await?;
    socket.start("after", query, json!({ "input": Exec::argv(&quiet, &["true"]).input() })).await?;
    loop {
        match next(&mut socket).await? {
            Frame::Complete { id } if id == "after" => break,
            Frame::Next { .. } => {}
            other => bail!("{other:?} after the flood"),
        }
    }
    client.destroy(&loud).await?;
    client.destroy(&quiet).await?;
    Ok(())
}

/// All streams of a host share connections: somebody who begins many and leaves them at once ends nobody else's.
pub async fn who_comes_and_goes_ends_no_stream_of_others(stack: Arc<Stack>) -> Result<()> {
    const ROUNDS: usize = 1000;
    let client = stack.client();
    let (busy, quiet) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let mut stream = client.exec_stream(Exec::argv(&quiet, &["cat"])).await?;
    let (_, tag) = stream.started().await?;
    let mut sleeper = client.exec_stream(Exec::argv(&busy, &["sleep", "1000"])).await?;
    let (_, sleeping) = sleeper.started().await?;

    let query = "subscription($id: ID!, $selector: String!) {
        processOutput(capsuleId: $id, selector: $selector) { __typename } }";
    let mut socket = Socket::connect(client).await?;
    for round in 0..ROUNDS {
        let id = format!("round-{round}");
        socket.start(&id, query, json!({ "id": busy, "selector": sleeping })).await?;
        socket.complete(&id).await?;
    }
    socket.start("last", query, json!({ "id": busy, "selector": sleeping })).await?;
    while !matches!(next(&mut socket).await?, Frame::Next { id, .. } if id == "last") {}

    client.write_stdin(&quiet, &tag, 0, b"still here").await?;
    let event = stream.next_within(SILENCE).await?;
    ensure!(matches!(&event, Some(ProcessEvent::Output { data, .. }) if data == b"still here"), "{event:?}");
    client.destroy(&busy).await?;
    client.destroy(&quiet).await?;
    Ok(())
}

fn kind_of(data: &serde_json::Value) -> &'static str {
    match data["exec"]["__typename"].as_str() {
        Some("ProcessStarted") => "S",
        Some("ProcessOutput") => "O",
        Some("ProcessExited") => "E",
        _ => "?",
    }
}

async fn next(socket: &mut Socket) -> Result<Frame> {
    tokio::time::timeout(SILENCE, socket.next()).await.context("the socket fell silent")?
}
