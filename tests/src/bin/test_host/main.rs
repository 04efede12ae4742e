//! `wrenn-test-host`: runs test binaries as root on a host of their own, a virtual machine with real KVM, device mapper and
//! loop devices whatever the machine around it offers; and lets its power fail.
//!
//! ```text
//!  this machine                          test host (QEMU, emulated, nested virtualisation)
//!  job 1, job 2 … ──▶ work disk ───────▶ init: modules, mounts; job 1, job 2 …; power off
//!  output, outcomes ◀── 2nd serial port ◀── what the jobs say, between marks of init
//! ```

mod disks;
mod job;
mod machine;
mod power;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use disks::{DataDisk, FileSystem, Workshop};
use job::Job;

/// Runs test binaries on a host of their own: a virtual machine with KVM, device mapper and loop devices. Needs root.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    host: HostArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct HostArguments {
    /// Has `test-host/`, as `wrenn-rootfs test-host` makes it.
    #[arg(long, env = "WRENN_DIR")]
    dir: PathBuf,
    /// Has the guest's `kernels/` and `images/`, which the jobs find as WRENN_DIR and WRENN_TEST_ASSETS [default: as --dir].
    #[arg(long, env = "WRENN_TEST_ASSETS")]
    assets: Option<PathBuf>,
    /// A program that the jobs find in their PATH and in WRENN_BIN_DIR; may be given several times.
    #[arg(long = "program", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// Put in as `firecracker`, with WRENN_FIRECRACKER_BIN naming it.
    #[arg(long, env = "WRENN_FIRECRACKER_BIN")]
    firecracker: Option<PathBuf>,
    /// In seconds; what has not ended then has failed.
    #[arg(long, default_value_t = 3600)]
    deadline: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Runs jobs one after another. A job is a command line: `[NAME=VALUE…] BINARY [ARGUMENT…]`.
    Run {
        #[arg(required = true, value_parser = Job::parse)]
        jobs: Vec<Job>,
    },
    /// Lets the power fail while snapshots are written, and looks at what the disk holds afterwards.
    Power {
        /// The test binary `power` of `wrenn-vmm`.
        binary: PathBuf,
        /// How many times, on each file system.
        #[arg(long, default_value_t = 3)]
        failures: u32,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread: the VMM is told to end with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome =
        runtime.context("starting the runtime").and_then(|runtime| runtime.block_on(until_told(arguments)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("wrenn-test-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Until it is done or somebody wants it to end: all that was made is removed either way.
async fn until_told(arguments: Arguments) -> Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        outcome = carry_out(arguments) => outcome,
        _ = terminate.recv() => anyhow::bail!("told to end"),
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
    }
}

/// Whether everything that was to be tested passed.
async fn carry_out(arguments: Arguments) -> Result<bool> {
    let Arguments { host, command } = arguments;
    let workshop = Workshop::open(&host).await?;
    let deadline = Duration::from_secs(host.deadline);
    match command {
        Command::Run { jobs } => report::run(&workshop, &jobs, deadline).await,
        Command::Power { binary, failures } => {
            for file_system in [FileSystem::Xfs, FileSystem::Ext4] {
                let data = DataDisk::make(&workshop, file_system)?;
                power::fail(&workshop, &data, &binary, failures, deadline).await?;
            }
            Ok(true)
        }
    }
}
