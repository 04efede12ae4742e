//! What went wrong with one operation on the host, and the sum of it for removals that go on.

use std::{fmt, io};

/// An operating-system call failed; says what was being done.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct Failure {
    /// What was being done to what, as in `opening /dev/kvm`.
    pub action: String,
    #[source]
    pub source: io::Error,
}

impl Failure {
    pub fn new(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { action: action.into(), source: source.into() }
    }
}

/// Names the action an error belongs to.
pub(crate) trait Doing<T> {
    /// `action` is only built when there is an error.
    fn doing<A: Into<String>>(self, action: impl FnOnce() -> A) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<A: Into<String>>(self, action: impl FnOnce() -> A) -> Result<T, Failure> {
        self.map_err(|source| Failure::new(action(), source))
    }
}

/// A removal that went on past errors: all of them, in order.
#[derive(Debug, thiserror::Error)]
pub struct Failures(pub Vec<Failure>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failure) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", failure.action, failure.source)?;
        }
        Ok(())
    }
}

/// Collects what goes wrong while something is removed step by step.
#[derive(Debug, Default)]
pub(crate) struct Teardown(Vec<Failure>);

impl Teardown {
    /// Notes an error and goes on; what is already gone is no error.
    pub fn step<T, E: Into<io::Error>>(&mut self, action: impl FnOnce() -> String, result: Result<T, E>) {
        if let Err(error) = result {
            let source = error.into();
            if source.kind() != io::ErrorKind::NotFound {
                self.0.push(Failure { action: action(), source });
            }
        }
    }

    pub fn failed(&mut self, failure: Failure) {
        self.0.push(failure);
    }

    pub fn finish(self) -> Result<(), Failures> {
        if self.0.is_empty() { Ok(()) } else { Err(Failures(self.0)) }
    }
}

/// Runs blocking work off the runtime's threads; a panic in it goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking tasks are only cancelled when the runtime ends, and then nobody awaits them.
            Err(_) => std::future::pending().await,
        },
    }
}
