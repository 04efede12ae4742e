//! What went wrong while starting, for a person reading the console.

use std::{error::Error, fmt, io};

/// One step that failed and the system's reason.
#[derive(Debug)]
pub struct Failure {
    step: String,
    source: io::Error,
}

impl Failure {
    /// For `map_err`: names the step, keeps the cause.
    pub fn of<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Self { step, source: source.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes a failure with its cause to the console.
pub fn report(failure: &Failure) {
    eprintln!("wrenn-init: {failure}: {}", failure.source);
}
