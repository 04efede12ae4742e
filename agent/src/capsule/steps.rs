//! Where the time of an operation goes: one histogram per operation, one log line with its steps.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

/// Measures one operation.
#[derive(Debug)]
pub struct Steps {
    operation: &'static str,
    started: Instant,
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    pub fn start(operation: &'static str) -> Self {
        let now = Instant::now();
        Self { operation, started: now, last: now, done: Vec::with_capacity(8) }
    }

    /// The step that just ended; it began where the one before ended.
    pub fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.done.push((step, now - self.last));
        self.last = now;
    }

    /// Milliseconds per step.
    fn breakdown(&self) -> String {
        let mut text = String::new();
        for (step, took) in &self.done {
            let separator = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{separator}{step}={:.1}", took.as_secs_f64() * 1e3);
        }
        text
    }

    /// The operation succeeded.
    pub fn finish(self) {
        let total = self.started.elapsed();
        metrics::histogram!("wrenn_capsule_operation_seconds", "operation" => self.operation)
            .record(total.as_secs_f64());
        metrics::counter!("wrenn_capsule_operations_total", "operation" => self.operation, "outcome" => "ok")
            .increment(1);
        tracing::info!(
            operation = self.operation,
            total_ms = format_args!("{:.1}", total.as_secs_f64() * 1e3),
            steps_ms = self.breakdown(),
            "done"
        );
    }

    /// The operation failed and was undone.
    pub fn fail(self, error: &dyn std::error::Error) {
        metrics::counter!("wrenn_capsule_operations_total", "operation" => self.operation, "outcome" => "error")
            .increment(1);
        tracing::warn!(
            operation = self.operation,
            total_ms = format_args!("{:.1}", self.started.elapsed().as_secs_f64() * 1e3),
            steps_ms = self.breakdown(),
            error = %crate::report(error),
            "failed and undone"
        );
    }
}
