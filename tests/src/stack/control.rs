//! One control plane of a stack.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::PATIENCE;
use crate::daemon::{Daemon, DaemonSpec};
use crate::graphql::Client;
use crate::wait;

/// A `wrenn-api`, and a client of it with the key of the team that the tests act for.
pub struct ControlPlane {
    spec: DaemonSpec,
    client: Client,
    /// Only in the state between a kill and the next start is there none.
    daemon: Mutex<Option<Daemon>>,
}

impl ControlPlane {
    pub(super) fn new(spec: DaemonSpec, client: Client) -> Self {
        Self { spec, client, daemon: Mutex::new(None) }
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn log(&self) -> &std::path::Path {
        &self.spec.log
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon().as_ref().context("the api is not running")?.pid())
    }

    pub(super) fn is_started(&self) -> bool {
        self.daemon().is_some()
    }

    pub async fn kill9(&self) -> Result<()> {
        self.take()?.kill9().await
    }

    pub(super) async fn terminate(&self, patience: Duration) -> Result<()> {
        self.take()?.terminate(patience).await
    }

    fn take(&self) -> Result<Daemon> {
        self.daemon().take().context("the api is not running")
    }

    /// Starts it, for the first time or after it was killed: same port, same database.
    pub async fn start(&self) -> Result<()> {
        *self.daemon() = Some(Daemon::start(self.spec.clone())?);
        wait::until_true("the api answering", PATIENCE, async || {
            Ok(self.client.run("{ __typename }", json!({})).await?["__typename"] == "Query")
        })
        .await
    }
}
