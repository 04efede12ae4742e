//! Says on stderr what is being done and how long it took, one line a step.

use std::time::Instant;

use crate::error::Result;

/// Does one step.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("  {what} … ");
    let started = Instant::now();
    let result = work();
    match &result {
        Ok(_) => eprintln!("{:.1} s", started.elapsed().as_secs_f64()),
        Err(_) => eprintln!("failed"),
    }
    result
}
