//! Logs: readable lines on stderr, JSON in `$WRENN_DIR/logs/agent.log`. SIGHUP opens the file anew, so that
//! logrotate can simply move it.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Mutex;

use reopen::Reopen;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, fmt};

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot open the log file")]
    File(#[source] io::Error),
    #[error("cannot install the log subscriber")]
    Install(#[source] TryInitError),
}

/// Starts logging to stderr and to `file`. Must be called inside the runtime, once.
pub fn start(filter: EnvFilter, file: &Path) -> Result<(), LogError> {
    let path = file.to_owned();
    let log = Reopen::new(Box::new(move || -> io::Result<File> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        OpenOptions::new().create(true).append(true).open(&path)
    }))
    .map_err(LogError::File)?;
    let handle = log.handle();
    let mut hangups = signal(SignalKind::hangup()).map_err(LogError::File)?;
    tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()))
        .with(fmt::layer().json().with_writer(Mutex::new(log)))
        .try_init()
        .map_err(LogError::Install)?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            handle.reopen();
            tracing::info!("log file opened anew");
        }
    });
    Ok(())
}
