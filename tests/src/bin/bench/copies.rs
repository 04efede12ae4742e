//! Forks and checkpoints of a running capsule.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures_util::future::try_join_all;
use serde_json::json;
use wrenn_tests::stack::Stack;

use crate::bare::{Saved, Workbench};
use crate::rounds::echo;
use crate::steps;
use crate::table::{Promise, Row};

/// Copies at once.
const COPIES: usize = 10;

/// Where the vCPUs stand still for a fork or a checkpoint: an operation of the agent's and its step, as it logs them.
const CAPTURE: &str = "capture";
const STANDSTILL: &str = "stopped";

/// Ten copies of a running capsule beside ten bare restores that are started together. A copy has answered when its
/// envd has confirmed the new identity, which is when the mutation returns; a bare machine when it has said one word.
pub async fn forks(stack: &Stack, bench: &Workbench, template: &Saved, samples: usize) -> Result<Vec<Row>> {
    let mut all = Row::new(
        "fork of 10 to the last one's answer",
        "ten bare restores begun together, to the last one's answer",
        Promise::Times(3.0),
    );
    let mut used = Row::new(
        "fork of 10 to the last one's `exec` output, all at once",
        "ten bare restores begun together, to the last one's answer",
        Promise::None,
    );
    let mut parent = Row::new(
        "its parent standing still",
        "bare stop, save, copy of what changed, go on",
        Promise::Within(50.0),
    );
    let benches: Vec<Workbench> = (1..=COPIES).map(|number| bench.another(number)).collect::<Result<_>>()?;
    let before = standstills(stack)?.len();
    for round in 0..samples {
        let id = stack.client().create(json!({})).await?.id;
        echo(stack, &id).await?;
        for first in [round.is_multiple_of(2), !round.is_multiple_of(2)] {
            if first {
                let begun = Instant::now();
                together(&benches, template)?;
                all.baseline.push(begun.elapsed());
                used.baseline.push(begun.elapsed());
                let (machine, _) = bench.restore(template, true)?;
                parent.baseline.push(bench.standstill(&machine)?);
                machine.end()?;
            } else {
                let begun = Instant::now();
                let copies = stack.client().fork(&id, COPIES).await?;
                all.wrenn.push(begun.elapsed());
                try_join_all(copies.iter().map(|copy| echo(stack, &copy.id))).await?;
                used.wrenn.push(begun.elapsed());
                for copy in copies {
                    stack.client().destroy(&copy.id).await?;
                }
            }
        }
        stack.client().destroy(&id).await?;
    }
    for took in &standstills(stack)?[before..] {
        parent.wrenn.push(*took);
    }
    Ok(vec![all, used, parent])
}

/// All machines at once, each to its answer; they end when the last one has answered.
fn together(benches: &[Workbench], template: &Saved) -> Result<()> {
    let machines = std::thread::scope(|scope| {
        let restores: Vec<_> =
            benches.iter().map(|bench| scope.spawn(move || bench.restore(template, true))).collect();
        restores
            .into_iter()
            .map(|restore| restore.join().map_err(|_| anyhow!("a restore panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    machines.into_iter().try_for_each(|(machine, _)| machine.end())
}

/// A running capsule made a template of.
pub async fn checkpoints(
    stack: &Stack,
    bench: &Workbench,
    template: &Saved,
    samples: usize,
) -> Result<Vec<Row>> {
    let mut whole =
        Row::new("`snapshotCapsule` of a running capsule", "bare stop, save, fsync, end", Promise::None);
    let mut stopped = Row::new(
        "of which: it stands still",
        "bare stop, save, copy of what changed, go on",
        Promise::Within(50.0),
    );
    let id = stack.client().create(json!({})).await?.id;
    let before = standstills(stack)?.len();
    for _ in 0..samples {
        echo(stack, &id).await?;
        let begun = Instant::now();
        stack.client().snapshot(&id, "bench").await?;
        whole.wrenn.push(begun.elapsed());
        let (machine, _) = bench.restore(template, true)?;
        stopped.baseline.push(bench.standstill(&machine)?);
        whole.baseline.push(bench.save(machine)?.1);
    }
    stack.client().destroy(&id).await?;
    for took in &standstills(stack)?[before..] {
        stopped.wrenn.push(*took);
    }
    Ok(vec![whole, stopped])
}

/// Of every capture so far.
fn standstills(stack: &Stack) -> Result<Vec<Duration>> {
    let log = std::fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    Ok(steps::samples(&log, CAPTURE, STANDSTILL))
}
