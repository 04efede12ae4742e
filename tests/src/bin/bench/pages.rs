//! The page server alone: no VMM, no restore. Another program measures it, as nothing here is linked with the product.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;
use wrenn_tests::binaries;

use crate::table::{Promise, Row, Samples};

/// An example of `vmm/`.
const PROGRAM: &str = "examples/pages";

/// What it prints: seconds.
#[derive(Deserialize)]
struct Measured {
    bytes: u64,
    copied_at_random: Vec<f64>,
    served_to_one: Vec<f64>,
    served_to_two: Vec<f64>,
    served_and_prefetched: Vec<f64>,
    first_use: Vec<f64>,
    first_use_prefetched: Vec<f64>,
    first_use_from_disk: Vec<f64>,
    first_use_prefetched_from_disk: Vec<f64>,
}

pub async fn measure(samples: usize) -> Result<Vec<Row>> {
    let mut command = Command::new(binaries::find(PROGRAM)?);
    let output = command.arg(samples.to_string()).stderr(Stdio::inherit()).output().await?;
    ensure!(output.status.success(), "{PROGRAM}: {}", output.status);
    let measured: Measured = serde_json::from_slice(&output.stdout).context("what it prints")?;

    let rate = |what, took: &[f64], promise| {
        let copies = "4 KiB copies at random within one process";
        let mut row = Row::of_rates(what, copies, promise);
        let rates = |samples: &mut Samples, took: &[f64]| {
            took.iter().for_each(|took| samples.push_rate(measured.bytes, Duration::from_secs_f64(*took)));
        };
        rates(&mut row.baseline, &measured.copied_at_random);
        rates(&mut row.wrenn, took);
        row
    };
    let first_use = |what, not: &[f64], prefetched: &[f64]| {
        let mut row = Row::new(what, "not prefetched", Promise::Times(0.5));
        not.iter().for_each(|took| row.baseline.push(Duration::from_secs_f64(*took)));
        prefetched.iter().for_each(|took| row.wrenn.push(Duration::from_secs_f64(*took)));
        row
    };
    Ok(vec![
        rate(
            "page server alone: 256 MiB touched at random by one thread",
            &measured.served_to_one,
            Promise::Share(0.8),
        ),
        rate("the same by two threads", &measured.served_to_two, Promise::Share(0.8)),
        rate("by one thread, while all is prefetched", &measured.served_and_prefetched, Promise::None),
        first_use(
            "page server alone: first use of a recorded working set of 32 MiB, prefetched, memory file on disk",
            &measured.first_use_from_disk,
            &measured.first_use_prefetched_from_disk,
        ),
        first_use(
            "the same, memory file in the host's cache",
            &measured.first_use,
            &measured.first_use_prefetched,
        ),
    ])
}
