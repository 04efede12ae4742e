//! What happened in a storm, counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub struct Tally(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    done: BTreeMap<&'static str, u64>,
    disturbed: BTreeMap<&'static str, u64>,
    kills: BTreeMap<&'static str, u64>,
    restores: u64,
    checks: u64,
}

impl Tally {
    /// An operation that succeeded.
    pub fn done(&self, operation: &'static str) {
        *self.counts().done.entry(operation).or_default() += 1;
    }

    /// One that came to nothing because something was killed meanwhile.
    pub fn disturbed(&self, operation: &'static str) {
        *self.counts().disturbed.entry(operation).or_default() += 1;
    }

    pub fn killed(&self, what: &'static str) {
        *self.counts().kills.entry(what).or_default() += 1;
    }

    /// A capsule that came back from disk had what it must have.
    pub fn restored(&self) {
        self.counts().restores += 1;
    }

    /// A running capsule had what it must have.
    pub fn checked(&self) {
        self.counts().checks += 1;
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts();
        let list = |counts: &BTreeMap<&str, u64>| {
            let each: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            format!("{} ({})", counts.values().sum::<u64>(), each.join(", "))
        };
        writeln!(out, "  operations:           {}", list(&counts.done))?;
        writeln!(out, "  cut off by a kill:    {}", list(&counts.disturbed))?;
        writeln!(out, "  kills:                {}", list(&counts.kills))?;
        write!(
            out,
            "  restores checked:     {}, running capsules checked: {}",
            counts.restores, counts.checks
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_printed_with_their_parts() {
        let tally = Tally::default();
        tally.done("pause");
        tally.done("pause");
        tally.done("create");
        tally.killed("agent");
        let text = tally.to_string();
        assert!(text.contains("operations:           3 (create 1, pause 2)"), "{text}");
        assert!(text.contains("kills:                1 (agent 1)"), "{text}");
    }
}
