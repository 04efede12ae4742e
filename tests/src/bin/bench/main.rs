//! `wrenn-bench`: Wrenn beside a bare VMM, in one run, as a table.

mod bare;
mod copies;
mod echo;
mod fanout;
mod pauses;
mod rounds;
mod steps;
mod table;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::json;
use wrenn_tests::assets;
use wrenn_tests::stack::{CapsuleRecord, Stack, StackOptions};

use bare::{Ingredients, Saved, Workbench};
use rounds::Rounds;
use steps::Step;
use table::{Promise, Row};

/// Cold boots are slow and vary little.
const COLD_BOOTS: usize = 3;

/// Samples of a quick run.
const QUICK: usize = 3;

/// Measures Wrenn against a bare VMM and prints a table in Markdown. Needs root and built binaries.
#[derive(Parser)]
struct Arguments {
    /// Directory with kernels/ and images/, as `make up` makes it.
    #[arg(long, env = "WRENN_TEST_ASSETS")]
    dir: PathBuf,
    /// How often everything is measured.
    #[arg(long, default_value_t = 20)]
    samples: usize,
    /// Three samples of each, and fewer of what takes long: to see whether it works.
    #[arg(long)]
    quick: bool,
    /// These groups of rows only; all of them if none is named.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Group>,
    /// JSON instead of Markdown.
    #[arg(long)]
    json: bool,
}

/// Rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Create, exec, pause, resume.
    Life,
    /// Creation from a warm pool.
    Warm,
    /// Ten copies at once.
    Fork,
    /// A template of a running capsule.
    Checkpoint,
    /// What a pause writes.
    Bytes,
    /// A hundred pauses of one capsule.
    Pauses,
    /// Keystrokes and their echo, alone and beside a flood.
    Echo,
    /// One change of a capsule that a thousand watch.
    Fanout,
}

/// What was measured. A group that fails takes nothing from the others.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    steps: Vec<Step>,
    failed: Vec<String>,
}

impl Table {
    fn add(&mut self, group: &str, measured: Result<Vec<Row>>) {
        match measured {
            Ok(rows) => self.rows.extend(rows),
            Err(error) => self.failed.push(format!("{group} ({error:#})")),
        }
        eprintln!("measured: {group}");
    }
}

impl Arguments {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    fn samples(&self) -> usize {
        if self.quick { self.samples.min(QUICK) } else { self.samples }
    }

    fn stack(&self) -> StackOptions<'static> {
        StackOptions { assets: Some(self.dir.clone()), ..StackOptions::default() }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let Table { rows, steps, failed } = runtime.block_on(measure(&arguments))?;
        if arguments.json {
            let whole = json!({ "rows": table::as_json(&rows), "steps": steps::as_json(&steps) });
            println!("{}", serde_json::to_string_pretty(&whole)?);
        } else {
            println!("{}\n\n{}", table::markdown(&rows)?, steps::markdown(&steps));
        }
        ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wrenn-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<Table> {
    ensure!(arguments.samples > 0, "at least one sample is wanted");
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces and mounts need root");
    let stack = Stack::start(arguments.stack()).await?;
    let outcome = measure_on(&stack, arguments).await;
    let log = if outcome.is_err() { stack.log_tail() } else { String::new() };
    let clean = stack.teardown().await;
    let measured = outcome.with_context(|| format!("the daemons' last words:\n{log}"))?;
    clean?;
    Ok(measured)
}

async fn measure_on(stack: &Stack, arguments: &Arguments) -> Result<Table> {
    let mut cold = Row::new(
        "cold boot; first `createCapsule` of a template",
        "bare cold boot to first TCP answer",
        Promise::None,
    );
    let begun = Instant::now();
    let first = stack.client().create(json!({})).await?.id;
    cold.wrenn.push(begun.elapsed());
    eprintln!("first capsule of the template after {:?} (boot, golden snapshot, restore)", begun.elapsed());

    let record = CapsuleRecord::read(&stack.host_of(&first)?.record_path(&first))?;
    let (kernel, initrd) = assets::kernel(&arguments.dir)?;
    let directory = stack.host_of(&first)?.dir().join("data/bare");
    let bench = Workbench::prepare(Ingredients {
        kernel,
        initrd,
        image: assets::image(&arguments.dir, assets::MINIMAL)?.disk(&arguments.dir),
        tsc_khz: record.tsc_khz(),
        directory,
    })?;
    stack.client().destroy(&first).await?;
    let mut template = None;
    for _ in 0..COLD_BOOTS {
        let (machine, answered) = bench.boot()?;
        cold.baseline.push(answered.answered);
        template = Some(bench.save_template(machine)?);
    }
    let template = template.context("a template")?;

    let samples = arguments.samples();
    let mut table = Table::default();
    if arguments.wants(Group::Life) {
        table.add("lives", lives(stack, &bench, &template, samples).await);
        table.rows.push(cold);
    }
    if arguments.wants(Group::Warm) {
        let rows = warm::measure(stack, arguments.stack(), &bench, &template, samples).await;
        table.add("with a warm pool and without", rows);
    }
    if arguments.wants(Group::Fork) {
        table.add("forks", copies::forks(stack, &bench, &template, samples).await);
    }
    if arguments.wants(Group::Checkpoint) {
        table.add("checkpoints", copies::checkpoints(stack, &bench, &template, samples).await);
    }
    if arguments.wants(Group::Bytes) {
        table.add("bytes of pauses", pauses::bytes(stack, samples).await);
    }
    if arguments.wants(Group::Pauses) {
        table.add("a hundred pauses", pauses::many(stack, arguments.quick).await);
    }
    if arguments.wants(Group::Echo) {
        table.add("echoes", echo::measure(stack, samples).await);
    }
    if arguments.wants(Group::Fanout) {
        table.add("fan-out", fanout::measure(stack, samples, arguments.quick).await);
    }
    let log = std::fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    table.steps = steps::of_log(&log);
    Ok(table)
}

/// Whole lives of a bare machine and of a capsule, taking turns.
async fn lives(stack: &Stack, bench: &Workbench, template: &Saved, samples: usize) -> Result<Vec<Row>> {
    let mut rounds = Rounds::new(stack, bench, template).await?;
    for round in 0..samples {
        eprint!("\rround {} of {samples}", round + 1);
        rounds.run(round).await.with_context(|| format!("round {}", round + 1))?;
    }
    eprintln!();
    Ok(rounds.into_rows())
}
