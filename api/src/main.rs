//! `wrenn-api`: the control plane.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use wrenn_api::{Bootstrap, Config, Server, config, database, logging};

/// Exit status for a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 2;

/// The control plane of Wrenn.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Migrates the database and serves (the default)
    Serve,
    /// Prints the GraphQL schema
    Schema,
    /// Brings the database up to date
    Migrate,
    /// Migrates, makes the first user and team if there are none, and prints their keys as one line of JSON
    Bootstrap(Bootstrap),
}

fn main() -> ExitCode {
    let matches = Cli::command().after_help(config::table()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let command = cli.command.unwrap_or(Command::Serve);
    if matches!(command, Command::Schema) {
        return finish(print(&wrenn_schema::sdl()));
    }
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("wrenn-api: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    finish(run(command, config))
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wrenn-api: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(command: Command, config: Config) -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another cryptography provider is installed already"))?;
    logging::start(&config.dir, &config.log)?;
    match command {
        Command::Serve => serve(config).await,
        Command::Migrate => {
            let db = database::open(config.database_url.expose_secret()).await?;
            db.close().await.context("cannot close the database")
        }
        Command::Bootstrap(bootstrap) => {
            let keys = bootstrap.run(&config).await?;
            print(&format!("{}\n", keys.to_json()))
        }
        Command::Schema => print(&wrenn_schema::sdl()),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    allow_open_files();
    let server = Server::builder().start(config).await?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    tokio::select! {
        () = server.stop() => Ok(()),
        _ = terminated.recv() => anyhow::bail!("told to stop twice; what was under way is abandoned"),
        _ = interrupted.recv() => anyhow::bail!("told to stop twice; what was under way is abandoned"),
    }
}

/// As many as the process may have at most: a connection is an open file, and the usual limit is that for programs
/// which still use `select`.
fn allow_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")
}
