//! `wrenn-agent`: serves a host's capsules, or says whether it could.

use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wrenn_agent::{Agent, Config, PAGE_SERVER, config, doctor, logging};
use wrenn_vmm::failpoint;
use wrenn_vmm::paths::HostPaths;
use wrenn_vmm::uffd;

/// Runs capsules on this host for a Wrenn control plane.
#[derive(Parser)]
#[command(name = "wrenn-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Configured(Configured),
    /// Serve the memory of one machine, as the agent that starts this says.
    #[command(hide = true, name = PAGE_SERVER)]
    PageServer { config: String },
}

/// What depends on the settings.
#[derive(Subcommand)]
enum Configured {
    /// Serve until SIGTERM.
    Serve {
        /// Register this host first, with a one-time token of the control plane.
        #[arg(long, value_name = "TOKEN")]
        register: Option<String>,
    },
    /// Say which VMM, disk store and network would be used and why, and what is missing.
    Doctor,
    /// The places where a test may let this program fail: a line with the name, the actions, the operations of each.
    #[command(hide = true)]
    Failpoints,
}

/// Of a wrong configuration or command line.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let settings = format!("Settings (environment, or TOML in WRENN_CONFIG):\n{}", config::table());
    let matches = Cli::command().after_help(settings).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let command = match cli.command {
        Command::Configured(command) => command,
        Command::PageServer { config } => return serve_pages(&config),
    };
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("wrenn-agent: {error}");
            return ExitCode::from(USAGE);
        }
    };
    if let Err(error) = failpoint::set_up() {
        eprintln!("wrenn-agent: {error}");
        return ExitCode::from(USAGE);
    }
    match run(command, config) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wrenn-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// It has no settings, no second thread before it has become its VMM's user, and no log but its standard error.
fn serve_pages(config: &str) -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    match uffd::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("page server: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Configured, config: Config) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async move {
        match command {
            Configured::Serve { register } => serve(config, register.map(SecretString::from)).await,
            Configured::Doctor => {
                let diagnosis = doctor::diagnose(&config).await?;
                print!("{}", diagnosis.text);
                Ok(if diagnosis.usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Configured::Failpoints => {
                for point in failpoint::POINTS {
                    let actions = if point.may_fail { "error,kill" } else { "kill" };
                    let operations: Vec<String> = point.operations.iter().map(ToString::to_string).collect();
                    println!("{} {actions} {}", point.name, operations.join(","));
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

async fn serve(config: Config, register: Option<SecretString>) -> anyhow::Result<ExitCode> {
    let log = HostPaths::new(&config.dir)?.logs().join("agent.log");
    logging::start(EnvFilter::try_new(&config.log)?, &log)?;
    for name in &config.ignored {
        tracing::warn!(name, "in the configuration file is no setting of the agent's: ignored");
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let agent = tokio::select! {
        agent = Agent::start(config, register) => agent?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    agent.stop().await;
    Ok(ExitCode::SUCCESS)
}
