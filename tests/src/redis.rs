//! A private Redis: started by whoever wants one, gone with its directory.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::inventory::Scope;
use crate::{leftovers, wait};

/// A running server on a socket in its directory. Dropping it stops it and removes its files.
pub struct RedisServer {
    directory: TempDir,
    server: Mutex<Option<Child>>,
}

impl RedisServer {
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(leftovers::REDIS).tempdir()?;
        // Slots are numbered from 1: a server has none.
        let scope = Scope { directory: directory.path().to_owned(), runtime: Vec::new(), slots: 0..=0 };
        leftovers::sign(&scope)?;
        let server = Self { directory, server: Mutex::new(None) };
        server.start_again().await?;
        Ok(server)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// After it was killed: at the same place, with nothing of before in its memory.
    pub async fn start_again(&self) -> Result<()> {
        let log = std::fs::File::create(self.directory.path().join("server.log"))?;
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting redis-server: install the package `redis-server`")?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        wait::until_true("Redis answering", Duration::from_secs(30), async || {
            Ok(tokio::net::UnixStream::connect(self.socket()).await.is_ok())
        })
        .await
    }

    /// Ends it without warning.
    pub fn kill9(&self) -> Result<()> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut server) = server {
            server.kill().context("killing Redis")?;
            server.wait()?;
            std::fs::remove_file(self.socket()).context("removing the socket of Redis")?;
        }
        Ok(())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Err(error) = self.kill9() {
            eprintln!("Redis could not be stopped: {error:#}");
        }
    }
}
