//! What went wrong with one operation on the host, and the sum of it for removals that go on.

use std::{fmt, io, thread, time::Duration};

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

/// Waits before each further try of what is [busy](while_busy).
const BUSY_WAITS_MS: [u64; 9] = [5, 10, 20, 40, 80, 160, 320, 640, 1280];

/// Tries again what fails as busy, for two and a half seconds; any other error is one at once. Whoever has a device open
/// only by chance is gone within that time, others mean to stay: a VMM that is just ending, a program that looks at every
/// new device, a child of this process between its `fork` and its `execve`, which has a copy of every descriptor.
pub(crate) fn while_busy<T>(mut work: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    for wait in BUSY_WAITS_MS {
        match work() {
            Err(failure) if failure.source.raw_os_error() == Some(libc::EBUSY) => {
                thread::sleep(Duration::from_millis(wait));
            }
            outcome => return outcome,
        }
    }
    work()
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn failing(times: u32, code: i32) -> (Result<(), Failure>, u32) {
        let tried = Cell::new(0);
        let outcome = while_busy(|| {
            tried.set(tried.get() + 1);
            if tried.get() > times {
                Ok(())
            } else {
                Err(Failure::new("x", io::Error::from_raw_os_error(code)))
            }
        });
        (outcome, tried.get())
    }

    #[test]
    fn only_what_is_busy_is_tried_again() {
        let (outcome, tried) = failing(4, libc::EBUSY);
        assert!(outcome.is_ok());
        assert_eq!(tried, 5);
        let (outcome, tried) = failing(1, libc::EPERM);
        assert_eq!(outcome.unwrap_err().source.raw_os_error(), Some(libc::EPERM));
        assert_eq!(tried, 1);
    }
}
