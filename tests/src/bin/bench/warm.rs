//! Creation with a pool of warm capsules beside creation without one, and beside a bare restore.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use wrenn_tests::stack::{Stack, StackOptions};
use wrenn_tests::wait;

use crate::bare::{Saved, Workbench};
use crate::rounds::echo;
use crate::table::{Promise, Row};

/// Capsules kept ready.
const POOL: usize = 2;

/// For the pool to be full again.
const PATIENCE: Duration = Duration::from_secs(120);

/// `stack` has no pool; one that has is made for this.
pub async fn measure(
    stack: &Stack,
    options: StackOptions<'_>,
    bench: &Workbench,
    template: &Saved,
    samples: usize,
) -> Result<Vec<Row>> {
    let settings = vec![("WRENN_WARM_POOL", POOL.to_string())];
    let warm = Stack::start(StackOptions { settings, ..options }).await?;
    let outcome = rounds(stack, &warm, bench, template, samples).await;
    let clean = warm.teardown().await;
    let rows = outcome?;
    clean?;
    Ok(rows)
}

async fn rounds(
    cold: &Stack,
    warm: &Stack,
    bench: &Workbench,
    template: &Saved,
    samples: usize,
) -> Result<Vec<Row>> {
    let mut pool = Row::new(
        "`createCapsule` to first `exec` output, warm pool",
        "the same without a pool",
        Promise::Times(0.5),
    );
    let mut bare = Row::new(
        "`createCapsule` to first `exec` output, warm pool",
        "bare restore to first TCP answer",
        Promise::None,
    );
    // The pool keeps what was lately asked for.
    for stack in [cold, warm] {
        timed_life(stack).await?;
    }
    for round in 0..samples {
        for first in [round.is_multiple_of(2), !round.is_multiple_of(2)] {
            if first {
                let took = timed_life(cold).await?;
                pool.baseline.push(took);
                let (machine, answered) = bench.restore(template, true)?;
                bare.baseline.push(answered.answered);
                machine.end()?;
            } else {
                wait::until_true("a full pool", PATIENCE, async || Ok(warm.vmm_count() >= POOL)).await?;
                let took = timed_life(warm).await?;
                pool.wrenn.push(took);
                bare.wrenn.push(took);
            }
        }
    }
    Ok(vec![pool, bare])
}

/// From the request to the first output; then the capsule is destroyed.
async fn timed_life(stack: &Stack) -> Result<Duration> {
    let begun = Instant::now();
    let id = stack.client().create(json!({})).await?.id;
    echo(stack, &id).await?;
    let took = begun.elapsed();
    stack.client().destroy(&id).await?;
    Ok(took)
}
