//! A capsule as others see it.

use std::fmt;

use serde::{Deserialize, Serialize};
use wrenn_proto::agent::v1 as proto;
use wrenn_proto::envd::v1 as envd;

use super::spec::CapsuleSpec;

/// Where a capsule is in its life; the machine is drawn in [`crate::capsule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Starting,
    Running,
    Pausing,
    Paused,
    Resuming,
    Stopping,
    Stopped,
    Error,
}

impl State {
    const fn to_proto(self) -> proto::CapsuleState {
        match self {
            Self::Starting => proto::CapsuleState::Starting,
            Self::Running => proto::CapsuleState::Running,
            Self::Pausing => proto::CapsuleState::Pausing,
            Self::Paused => proto::CapsuleState::Paused,
            Self::Resuming => proto::CapsuleState::Resuming,
            Self::Stopping => proto::CapsuleState::Stopping,
            Self::Stopped => proto::CapsuleState::Stopped,
            Self::Error => proto::CapsuleState::Error,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Error => "in error",
        })
    }
}

/// Why a capsule is in its state, where that needs saying. The code is stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub code: String,
    pub message: String,
}

impl Cause {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    pub fn to_proto(&self) -> envd::Cause {
        envd::Cause { code: self.code.clone(), message: self.message.clone() }
    }
}

/// A capsule at one revision.
#[derive(Debug, Clone)]
pub struct CapsuleView {
    pub spec: std::sync::Arc<CapsuleSpec>,
    pub state: State,
    pub cause: Option<Cause>,
    pub timeout_sec: u32,
    /// Grows with every change.
    pub revision: u64,
    /// Of the present life; 0 before the first. Nanoseconds since the Unix epoch, as the next.
    pub started_at_ns: i64,
    pub last_active_at_ns: i64,
}

impl CapsuleView {
    pub fn to_proto(&self) -> proto::Capsule {
        proto::Capsule {
            id: self.spec.id.to_string(),
            team_id: self.spec.team.to_string(),
            template_id: self.spec.template.to_string(),
            state: self.state.to_proto().into(),
            cause: self.cause.as_ref().map(Cause::to_proto),
            vcpus: self.spec.vcpus,
            memory_mib: self.spec.memory_mib,
            disk_mib: self.spec.disk_mib,
            timeout_sec: self.timeout_sec,
            revision: self.revision,
            started_at_ns: self.started_at_ns,
            last_active_at_ns: self.last_active_at_ns,
            parent_id: self.spec.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        }
    }
}
