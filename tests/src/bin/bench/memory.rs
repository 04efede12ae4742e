//! What capsules cost in memory: the agent's, and each machine's beside a bare one of which as little was asked.

use anyhow::{Context, Result};
use serde_json::json;
use wrenn_tests::procfs;
use wrenn_tests::stack::Stack;

use crate::bare::{Saved, Workbench};
use crate::table::{Promise, Row};

/// Capsules that an agent is weighed with.
const CAPSULES: usize = 10;

/// What the agent may have of memory: so much, and so much more for each capsule, in KiB.
const AGENT_KIB: f64 = 50.0 * 1024.0;
const AGENT_KIB_PER_CAPSULE: f64 = 512.0;

/// What a capsule's machine may have beyond a bare one that is as idle, in KiB: envd in its restore runs and writes more of
/// the guest's memory than a dozen lines of Perl that answer, and under emulation what runs is translated first.
const MACHINE_KIB: f64 = 8.0 * 1024.0;

pub async fn measure(stack: &Stack, bench: &Workbench, template: &Saved, samples: usize) -> Result<Vec<Row>> {
    let own = machines(stack, bench, template, samples).await?;
    let [agent, shared] = many(stack, bench, template).await?;
    Ok(vec![agent, own, shared])
}

/// What a machine has for itself once it was restored: what its VMM needs, and what its guest has changed.
async fn machines(stack: &Stack, bench: &Workbench, template: &Saved, samples: usize) -> Result<Row> {
    let mut row = Row::of_sizes(
        "memory that an idle restored capsule's VMM has for itself",
        "a bare restore's, after its first TCP answer",
        Promise::Plus(MACHINE_KIB),
    );
    let client = stack.client();
    for round in 0..samples {
        for bare in [round.is_multiple_of(2), !round.is_multiple_of(2)] {
            if bare {
                let (machine, _) = bench.restore(template, true)?;
                row.baseline.push_bytes(own(machine.pid())?);
                machine.end()?;
            } else {
                let id = client.create(json!({})).await?.id;
                row.wrenn.push_bytes(own(vmm(stack, &id)?)?);
                client.destroy(&id).await?;
            }
        }
    }
    Ok(row)
}

/// The agent with many idle capsules, and what these share.
async fn many(stack: &Stack, bench: &Workbench, template: &Saved) -> Result<[Row; 2]> {
    let mut agent = Row::of_sizes(
        "resident memory of the agent with ten idle capsules",
        "with none",
        Promise::Within(AGENT_KIB + AGENT_KIB_PER_CAPSULE * CAPSULES as f64),
    );
    let mut shared = Row::of_sizes(
        "each of ten idle capsules' VMM, what is shared divided by its users",
        "one bare restore, after its first TCP answer",
        Promise::None,
    );
    let client = stack.client();
    agent.baseline.push_bytes(resident(stack.host().pid()?)?);
    let (machine, _) = bench.restore(template, true)?;
    shared.baseline.push_bytes(proportional(machine.pid())?);
    machine.end()?;
    let mut ids = Vec::new();
    for _ in 0..CAPSULES {
        ids.push(client.create(json!({})).await?.id);
    }
    agent.wrenn.push_bytes(resident(stack.host().pid()?)?);
    for id in &ids {
        shared.wrenn.push_bytes(proportional(vmm(stack, id)?)?);
    }
    for id in &ids {
        client.destroy(id).await?;
    }
    Ok([agent, shared])
}

fn vmm(stack: &Stack, id: &str) -> Result<u32> {
    stack.vmm_of(id).context("a running capsule has a VMM")
}

fn resident(pid: u32) -> Result<u64> {
    Ok(procfs::resident_kib(pid).context("resident memory")? * 1024)
}

fn own(pid: u32) -> Result<u64> {
    Ok(procfs::own_kib(pid).context("memory of its own")? * 1024)
}

fn proportional(pid: u32) -> Result<u64> {
    Ok(procfs::proportional_kib(pid).context("its part of memory")? * 1024)
}
