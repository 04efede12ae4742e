//! Copies of one snapshot are not each other, and know what time it is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use wrenn_tests::graphql::{Client, Exec, ProcessEvent};
use wrenn_tests::stack::Stack;

/// What must differ: host name, the kernel's random numbers by every way to them, the machine's id.
const WHO: &str = "hostname; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; \
                   cat /proc/sys/kernel/random/uuid; cat /etc/machine-id";

pub async fn copies_differ(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    // The first command each of them runs after it was restored from the same snapshot.
    let (one, two) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let (first, second) = (who(client, &one).await?, who(client, &two).await?);
    for (mine, theirs) in first.iter().zip(&second) {
        ensure!(mine != theirs, "two capsules share `{mine}`");
    }
    ensure!(first[3].len() == 32 && first[3].chars().all(|c| c.is_ascii_hexdigit()), "{}", first[3]);

    // Over a pause the identity stays, the random numbers go on being new ones.
    let mut random = BTreeSet::from([first[1].clone(), second[1].clone()]);
    for round in 0..2 {
        client.pause(&one).await?;
        client.resume(&one).await?;
        let again = who(client, &one).await?;
        ensure!(again[0] == first[0] && again[3] == first[3], "{first:?} became {again:?}");
        ensure!(random.insert(again[1].clone()), "round {round}: random numbers came twice: {}", again[1]);
    }
    client.destroy(&one).await?;
    client.destroy(&two).await?;
    Ok(())
}

pub async fn who(client: &Client, id: &str) -> Result<Vec<String>> {
    let lines: Vec<String> = client.sh(id, WHO).await?.lines().map(str::to_owned).collect();
    ensure!(lines.len() == 4, "{lines:?}");
    Ok(lines)
}

/// How far the guest's clock may be off after a resume.
const TOLERANCE_NS: i128 = 50_000_000;

/// A look that takes no longer tells whether it is.
const SHORT_NS: i128 = TOLERANCE_NS / 2;

/// How often the clock is looked at, and for how long while no look was short.
const LOOKS: u64 = 30;
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn the_clock_is_right_after_a_pause(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let error = clock_error(client, &id).await?;
    ensure!(error <= TOLERANCE_NS, "up to {} ms off after creation", error / 1_000_000);
    client.sh(&id, "date -s \"@$(($(date +%s) - 3600))\"").await?;
    let stepped = clock_error(client, &id).await?;
    ensure!(stepped > 3_590_000_000_000, "the guest's clock was not stepped back: {stepped} ns");
    client.pause(&id).await?;
    client.resume(&id).await?;
    let error = clock_error(client, &id).await?;
    ensure!(error <= TOLERANCE_NS, "up to {} ms off after a pause of an hour", error / 1_000_000);
    client.destroy(&id).await?;
    Ok(())
}

/// The most the guest's clock can be off, in nanoseconds: each of its readings lies between two of the host's. The
/// best of several, as a look itself takes its time on a busy machine, and of more if none of them was short. A shell that
/// is running already reads the clock, so that no start of a process lies between.
async fn clock_error(client: &Client, id: &str) -> Result<i128> {
    let line = "while read -r _; do echo ${EPOCHREALTIME/./}; done";
    let mut stream = client.exec_stream(Exec::argv(id, &["/bin/bash", "-c", line])).await?;
    let (_, tag) = stream.started().await?;
    let (mut best, mut shortest) = (i128::MAX, i128::MAX);
    let begun = Instant::now();
    for look in 0.. {
        if look >= LOOKS && (shortest <= SHORT_NS || best <= TOLERANCE_NS || begun.elapsed() >= PATIENCE) {
            break;
        }
        let before = host_clock()?;
        client.write_stdin(id, &tag, look, b"\n").await?;
        let event = stream.next_within(PATIENCE).await?;
        let after = host_clock()?;
        let Some(ProcessEvent::Output { data, .. }) = event else { bail!("{event:?} where a time was due") };
        let micros: i128 = String::from_utf8(data)?.trim_end().parse()?;
        let guest = micros * 1000;
        best = best.min((guest - before).abs().max((guest - after).abs()));
        shortest = shortest.min(after - before);
    }
    client.close_stdin(id, &tag).await?;
    Ok(best)
}

fn host_clock() -> Result<i128> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the host's clock")?;
    i128::try_from(since.as_nanos()).context("the host's clock")
}
