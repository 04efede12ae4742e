//! `wrenn-storm`: random operations while agent, api and VMMs are killed, for as long as asked for.
//!
//! Every capsule counts in its memory and on its disk, and what it has once said it must never unsay. A capsule is lost only by
//! its own VMM's death, which must be noticed and explained; whatever else is killed, everything is in service again in
//! time, no row is stuck, and at the end nothing is left on the host.

mod random;
mod sailor;
mod tally;
mod weather;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::future::try_join_all;
use wrenn_tests::runner;
use wrenn_tests::stack::{LIMIT, Stack, StackOptions};

use random::Random;
use sailor::Sailor;
use tally::Tally;
use weather::Weather;

/// Drives a whole installation through random operations and kills. Needs root and built binaries.
#[derive(Parser)]
struct Arguments {
    /// How long it rages.
    #[arg(long, env = "WRENN_STORM_SECONDS", default_value_t = 600)]
    seconds: u64,
    /// Of the random numbers; one of its own if none is given.
    #[arg(long, env = "WRENN_STORM_SEED")]
    seed: Option<u64>,
    /// How many work at the same time, on capsules of their own.
    #[arg(long, default_value_t = 3)]
    sailors: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = runner::check_prerequisites() {
        return runner::refuse(&error);
    }
    let outcome = runner::runtime().and_then(|runtime| runtime.block_on(Box::pin(storm(&arguments))));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wrenn-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn storm(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(seed_of_now);
    println!("a storm of {} s; WRENN_STORM_SEED={seed} gives the same again", arguments.seconds);
    let stack = Stack::start(StackOptions::default()).await?;
    let tally = Tally::default();
    let limit = LIMIT + Duration::from_secs(arguments.seconds);
    let outcome = stack.explain(limit, rage(&stack, &tally, seed, arguments)).await;
    let clean = stack.teardown().await.context("after the storm");
    println!("{tally}");
    println!("  left on the host:     {}", if clean.is_ok() { "nothing" } else { "see below" });
    outcome.with_context(|| format!("in the storm of seed {seed}")).and(clean)
}

/// Ends at the first thing that should not be.
async fn rage(stack: &Stack, tally: &Tally, seed: u64, arguments: &Arguments) -> Result<()> {
    let weather = Weather::default();
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let sailors = (1..=arguments.sailors)
        .map(|number| Sailor::new(stack, &weather, tally, seed, number).work(until))
        .collect::<Vec<_>>();
    let kills = weather::rage(stack, &weather, tally, Random::new(seed, 0), until);
    tokio::try_join!(try_join_all(sailors), kills)?;
    Ok(())
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}
