//! `wrenn-bench`: Wrenn beside a bare VMM, in one run, as a table.

mod bare;
mod copies;
mod echo;
mod fanout;
mod files;
mod memory;
mod pages;
mod pauses;
mod proxy;
mod rounds;
mod steps;
mod table;
mod terminal;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

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

/// Changes of a quick run.
const QUICK_CHANGES: u64 = 50;

/// Measures Wrenn against a bare VMM and prints a table in Markdown. Needs root and built binaries.
#[derive(Parser)]
struct Arguments {
    /// Directory with kernels/ and images/, as `make up` makes it.
    #[arg(long, env = "WRENN_TEST_ASSETS")]
    dir: PathBuf,
    /// How often everything is measured.
    #[arg(long, default_value_t = 20)]
    samples: usize,
    /// Changes of a capsule that a thousand watch: ten thousand take some minutes.
    #[arg(long, default_value_t = 1000)]
    changes: u64,
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
    /// What capsules cost in memory.
    Memory,
    /// What a pause writes.
    Bytes,
    /// A hundred pauses of one capsule.
    Pauses,
    /// Keystrokes and their echo, alone and beside a flood.
    Echo,
    /// One change of a capsule that a thousand watch.
    Fanout,
    /// HTTP to a port of a capsule, and a terminal beside it.
    Proxy,
    /// Files in and out.
    Files,
    /// The page server, alone.
    Pages,
}

impl Group {
    /// Whether it has rows beside a bare VMM.
    fn has_bare_vmm(self) -> bool {
        matches!(self, Self::Life | Self::Warm | Self::Fork | Self::Checkpoint | Self::Memory)
    }
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

    fn changes(&self) -> u64 {
        if self.quick { self.changes.min(QUICK_CHANGES) } else { self.changes }
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
    let begun = Instant::now();
    let first = stack.client().create(json!({})).await?.id;
    let created = begun.elapsed();
    eprintln!("first capsule of the template after {created:?} (boot, golden snapshot, restore)");
    let tsc_khz = CapsuleRecord::read(&stack.host_of(&first)?.record_path(&first))?.tsc_khz();
    stack.client().destroy(&first).await?;
    let mut table = Table::default();
    if Group::value_variants().iter().any(|group| group.has_bare_vmm() && arguments.wants(*group)) {
        beside_bare_vmm(stack, arguments, tsc_khz, created, &mut table).await?;
    }

    let (samples, quick) = (arguments.samples(), arguments.quick);
    if arguments.wants(Group::Bytes) {
        table.add("bytes of pauses", pauses::bytes(stack, samples).await);
    }
    if arguments.wants(Group::Pauses) {
        table.add("a hundred pauses", pauses::many(stack, quick).await);
    }
    if arguments.wants(Group::Echo) {
        table.add("echoes", echo::measure(stack, samples).await);
    }
    if arguments.wants(Group::Fanout) {
        table.add("fan-out", fanout::measure(stack, samples, arguments.changes()).await);
    }
    if arguments.wants(Group::Proxy) {
        table.add("services", proxy::measure(stack, samples, quick).await);
    }
    if arguments.wants(Group::Files) {
        table.add("files", files::measure(stack, samples, quick).await);
    }
    if arguments.wants(Group::Pages) {
        table.add("pages", pages::measure(samples).await);
    }
    let log = std::fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    table.steps = steps::of_log(&log);
    Ok(table)
}

/// The groups that have a bare VMM for their baseline; `created` is how long the first capsule took.
async fn beside_bare_vmm(
    stack: &Stack,
    arguments: &Arguments,
    tsc_khz: u64,
    created: Duration,
    table: &mut Table,
) -> Result<()> {
    let mut cold = Row::new(
        "cold boot; first `createCapsule` of a template",
        "bare cold boot to first TCP answer",
        Promise::None,
    );
    cold.wrenn.push(created);
    let (kernel, initrd) = assets::kernel(&arguments.dir)?;
    let directory = stack.host().dir().join("data/bare");
    let bench = Workbench::prepare(Ingredients {
        kernel,
        initrd,
        image: assets::image(&arguments.dir, assets::MINIMAL)?.disk(&arguments.dir),
        tsc_khz,
        directory,
    })?;
    let mut template = None;
    for _ in 0..COLD_BOOTS {
        let (machine, answered) = bench.boot()?;
        cold.baseline.push(answered.answered);
        template = Some(bench.save_template(machine)?);
    }
    let template = template.context("a template")?;

    let samples = arguments.samples();
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
    if arguments.wants(Group::Memory) {
        table.add("memory", memory::measure(stack, &bench, &template, samples).await);
    }
    Ok(())
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
