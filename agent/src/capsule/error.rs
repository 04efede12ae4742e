//! Why a request about a capsule came to nothing.

use std::sync::Arc;

use super::view::{Cause, State};
use crate::guest::GuestError;
use crate::ids::{CapsuleId, TemplateId};

/// The cause of a step's failure; shared, because everyone who joined an operation is told of it.
pub type StepSource = Arc<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum CapsuleError {
    #[error("there is no capsule {0} on this host")]
    NotFound(CapsuleId),
    #[error("{message}")]
    Invalid {
        /// In the GraphQL schema's spelling.
        field: &'static str,
        message: String,
    },
    #[error("the snapshot {template} is not on this host")]
    NoSnapshot { template: String },
    #[error("this host has no image of the template {template}")]
    NoImage { template: String },
    #[error("template {template} was made of capsule {source_id} already")]
    TemplateTaken { template: TemplateId, source_id: CapsuleId },
    /// Its guest has made something else of it, or damaged it.
    #[error("the disk of capsule {id} cannot become an image: {reason}")]
    NoImageOf { id: CapsuleId, reason: String },
    /// It was made by another VMM, on another CPU.
    #[error("the snapshot cannot be restored on this host: {reason}")]
    Refused { reason: String },
    /// One of several copies could not be made, so none was.
    #[error("the copy {child} could not be made")]
    ForkFailed {
        child: CapsuleId,
        #[source]
        source: Box<CapsuleError>,
    },
    #[error("capsule {id} is {state}{}", because(.cause.as_ref()))]
    WrongState { id: CapsuleId, state: State, cause: Option<Cause> },
    /// It runs, but this agent cannot ask anything of it.
    #[error("the guest of capsule {0} does not answer yet")]
    Unheard(CapsuleId),
    #[error("not enough {resource} on this host: {wanted} wanted, {free} free")]
    Exhausted { resource: &'static str, wanted: String, free: String },
    #[error("capsule {0} was destroyed while this was under way")]
    Destroyed(CapsuleId),
    #[error("the machine died: {0}")]
    VmmDied(String),
    #[error("this agent is stopping")]
    Stopping,
    #[error(
        "this host is draining: it takes no new capsules and resumes none until its agent is started again"
    )]
    Draining,
    #[error("{0} capsules of this host could not be paused; the agent's log says why")]
    StillRunning(usize),
    #[error("the guest did not answer in time: {step}")]
    GuestTimeout { step: &'static str },
    #[error("{step} failed")]
    Step {
        step: &'static str,
        #[source]
        source: StepSource,
    },
}

fn because(cause: Option<&Cause>) -> String {
    cause.map(|cause| format!(": {}", cause.message)).unwrap_or_default()
}

impl CapsuleError {
    /// Of a capsule that cannot be used in this state. What runs can be used, unless its guest is silent.
    pub fn wrong_state(id: CapsuleId, state: State, cause: Option<Cause>) -> Self {
        if state == State::Running { Self::Unheard(id) } else { Self::WrongState { id, state, cause } }
    }

    /// For `map_err`: names the step in which the guest was silent or refused.
    pub fn guest(step: &'static str) -> impl FnOnce(GuestError) -> Self {
        move |error| match error {
            GuestError::Unreachable { .. } | GuestError::Timeout(_) => Self::GuestTimeout { step },
            error => Self::step(step)(error),
        }
    }

    /// For `map_err`: names the step that failed.
    pub fn step<E: std::error::Error + Send + Sync + 'static>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Step { step, source: Arc::new(error) }
    }
}

/// Everything that went wrong while something was taken down; the rest was taken down all the same.
#[derive(Debug, Default)]
pub struct Teardown(Vec<String>);

impl Teardown {
    /// Notes a failure and goes on.
    pub fn note<T, E: std::error::Error>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.0.push(format!("{what}: {}", crate::report(&error)))).ok()
    }

    pub fn merge(&mut self, other: Result<(), TeardownError>) {
        if let Err(error) = other {
            self.0.extend(error.0);
        }
    }

    pub fn finish(self) -> Result<(), TeardownError> {
        if self.0.is_empty() { Ok(()) } else { Err(TeardownError(self.0)) }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct TeardownError(Vec<String>);
