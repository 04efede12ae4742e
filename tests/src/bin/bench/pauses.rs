//! What a pause writes, and whether the hundredth costs what the second did.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

use crate::bare::dirty;
use crate::rounds::echo;
use crate::table::{Promise, Row};

/// What a guest changes of its memory before each pause that is weighed.
const CHANGED_MIB: u64 = 32;
/// And before each of many.
const CHANGED_EACH_TIME_MIB: u64 = 4;

/// Pauses of one capsule, and of them the first and the last ones that are compared.
const PAUSES: usize = 112;
const COMPARED: usize = 20;

/// After that many generations the next pause finds them merged.
const GENERATIONS: usize = 8;

/// For the machine of a paused capsule to be taken apart.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that the agent writes for a pause, beside what the machine's page map says was changed just before.
pub async fn bytes(stack: &Stack, samples: usize) -> Result<Vec<Row>> {
    let mut row = Row::of_sizes(
        "bytes that a pause writes after 32 MiB changed",
        "changed since the last pause, by the page map",
        Promise::Times(1.1),
    );
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.pause(&id).await?;
    for _ in 0..samples {
        client.resume(&id).await?;
        change(stack, &id, CHANGED_MIB).await?;
        let vmm = stack.vmm_of(&id).context("a running capsule has a VMM")?;
        row.baseline.push_bytes(dirty::changed_bytes(vmm, &id)?);
        let before = written(stack)?;
        client.pause(&id).await?;
        wait::until_true("the machine taken apart", PATIENCE, async || Ok(stack.vmm_of(&id).is_none()))
            .await?;
        row.wrenn.push_bytes(written(stack)? - before);
    }
    client.destroy(&id).await?;
    Ok(vec![row])
}

/// One capsule that is paused and resumed over and over, with the same little changed in between.
pub async fn many(stack: &Stack, quick: bool) -> Result<Vec<Row>> {
    let (pauses, compared) = if quick { (3 * GENERATIONS, 3) } else { (PAUSES, COMPARED) };
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let (mut paused, mut resumed) = (Vec::new(), Vec::new());
    for number in 1..=pauses {
        eprint!("\rpause {number} of {pauses}");
        change(stack, &id, CHANGED_EACH_TIME_MIB).await?;
        let begun = Instant::now();
        client.pause(&id).await?;
        paused.push(begun.elapsed());
        let begun = Instant::now();
        client.resume(&id).await?;
        echo(stack, &id).await?;
        resumed.push(begun.elapsed());
    }
    eprintln!();
    client.destroy(&id).await?;
    let late = "the last of over a hundred `pauseCapsule` of one capsule";
    let mut pause = Row::new(late, "its second and those after it", Promise::Times(1.2));
    let mut resume = Row::new(
        "the last of over a hundred `resumeCapsule`, to `exec` output",
        "its second and those after it",
        Promise::Times(1.2),
    );
    let mut ninth = Row::new("every eighth of them, from the ninth on", "the others", Promise::Times(1.2));
    for (row, all) in [(&mut pause, &paused), (&mut resume, &resumed)] {
        all[1..=compared].iter().for_each(|took| row.baseline.push(*took));
        all[all.len() - compared..].iter().for_each(|took| row.wrenn.push(*took));
    }
    for (number, took) in (1..).zip(&paused).skip(1) {
        let of_eight = if number % GENERATIONS == 1 { &mut ninth.wrenn } else { &mut ninth.baseline };
        of_eight.push(*took);
    }
    Ok(vec![pause, ninth, resume])
}

/// Changes that much of the guest's memory, and nothing on its disk.
async fn change(stack: &Stack, id: &str, mib: u64) -> Result<()> {
    let line = format!("head -c {} /dev/urandom > /run/changed", mib << 20);
    stack.client().sh(id, &line).await.map(drop)
}

/// Bytes that the agent has ever dirtied of files (`write_bytes` of proc_pid_io(5)): clones are not among them.
fn written(stack: &Stack) -> Result<u64> {
    let counters =
        fs::read_to_string(format!("/proc/{}/io", stack.host().pid()?)).context("the agent's I/O")?;
    let line = counters.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.context("write_bytes")?.parse().context("write_bytes")
}
