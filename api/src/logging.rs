//! Logs to stderr for people, and to `$WRENN_DIR/logs/api.log` as JSON for machines.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Mutex,
};

use reopen::Reopen;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("WRENN_DIR: cannot write {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("WRENN_LOG: is not a filter")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    #[error("cannot listen for SIGHUP")]
    Signal(#[source] io::Error),
}

/// Sets up the log of the process. SIGHUP reopens the file from then on, so that it can be rotated by
/// renaming it.
///
/// # Errors
/// The file cannot be opened or the filter is none.
///
/// # Panics
/// Outside a Tokio runtime, or when called twice.
pub fn start(dir: &Path, filter: &str) -> Result<(), LogError> {
    let path = dir.join("logs").join("api.log");
    let file = open_reopenable(&path).map_err(|source| LogError::File { path, source })?;
    let handle = file.handle();
    let filter = EnvFilter::try_new(filter).map_err(LogError::Filter)?;
    let for_people =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let for_machines = tracing_subscriber::fmt::layer().json().with_writer(Mutex::new(file));
    tracing_subscriber::registry().with(filter).with(for_people).with(for_machines).init();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));

    let mut hangups = signal(SignalKind::hangup()).map_err(LogError::Signal)?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            handle.reopen();
            tracing::info!("reopened the log file");
        }
    });
    Ok(())
}

fn open_reopenable(path: &Path) -> io::Result<Reopen<File>> {
    let path = path.to_owned();
    Reopen::new(Box::new(move || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        OpenOptions::new().create(true).append(true).open(&path)
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_renamed_file_is_followed_until_the_hangup() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs").join("api.log");
        let mut file = open_reopenable(&path).unwrap();
        file.write_all(b"one\n").unwrap();
        let rotated = dir.path().join("api.log.1");
        std::fs::rename(&path, &rotated).unwrap();
        file.write_all(b"two\n").unwrap();
        file.handle().reopen();
        file.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(rotated).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "three\n");
    }
}
