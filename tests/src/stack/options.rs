//! What kind of stack a test wants.

use std::path::PathBuf;
use std::sync::Arc;

use crate::assets;
use crate::postgres::Cluster;
use crate::redis::RedisServer;

/// Where the control plane keeps its rows.
pub enum Database<'a> {
    Sqlite,
    /// A fresh database of this cluster.
    Postgres(&'a Cluster),
}

/// What an agent does with its capsules when it is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    Keep,
    Pause,
}

impl OnStop {
    pub(super) fn as_setting(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Pause => "pause",
        }
    }
}

pub struct StackOptions<'a> {
    pub database: Database<'a>,
    /// Where several control planes hear of each other's changes.
    pub redis: Option<Arc<RedisServer>>,
    /// Control planes besides the first one, on the same database.
    pub replicas: usize,
    pub hosts: usize,
    pub on_stop: OnStop,
    /// Where kernels and images are; what `WRENN_TEST_ASSETS` names if none.
    pub assets: Option<PathBuf>,
    /// Names of the images that the hosts have, of those that were made.
    pub images: Vec<&'static str>,
    /// Further settings of the agents.
    pub settings: Vec<(&'static str, String)>,
    /// Whether the agents' failpoints can be ordered.
    pub failpoints: bool,
}

impl StackOptions<'_> {
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(setting, _)| *setting == name).map(|(_, value)| value.as_str())
    }
}

impl Default for StackOptions<'_> {
    fn default() -> Self {
        Self {
            database: Database::Sqlite,
            redis: None,
            replicas: 0,
            hosts: 1,
            on_stop: OnStop::Keep,
            assets: None,
            images: vec![assets::MINIMAL],
            settings: Vec::new(),
            failpoints: false,
        }
    }
}
