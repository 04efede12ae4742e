//! The table: Wrenn beside its baseline, with the promise and whether it was kept.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wrenn_tests::stats::{Summary, summarize_values};

/// What the median is promised to be, measured by the baseline's.
#[derive(Debug, Clone, Copy)]
pub enum Promise {
    /// At most this many times the baseline.
    Times(f64),
    /// At least this many times the baseline: of rates, of which more is better.
    Share(f64),
    /// At most this much more than the baseline, in the row's unit.
    Plus(f64),
    /// At most this much in the row's unit, whatever the baseline takes.
    Within(f64),
    /// Shown for orientation.
    None,
}

/// What a row's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    Kibibytes,
    MebibytesPerSecond,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Kibibytes => "KiB",
            Self::MebibytesPerSecond => "MiB/s",
        }
    }
}

/// Numbers of one kind, in the unit of their row.
#[derive(Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1000.0);
    }

    pub fn push_bytes(&mut self, bytes: u64) {
        self.0.push(bytes as f64 / 1024.0);
    }

    pub fn push_rate(&mut self, bytes: u64, took: Duration) {
        self.0.push(bytes as f64 / f64::from(1 << 20) / took.as_secs_f64());
    }

    fn summary(&self) -> Option<Summary> {
        summarize_values(self.0.clone())
    }
}

/// One line: what was measured, with all its samples.
#[derive(Debug)]
pub struct Row {
    pub what: &'static str,
    pub baseline_is: &'static str,
    pub baseline: Samples,
    pub wrenn: Samples,
    pub promise: Promise,
    unit: Unit,
}

impl Row {
    pub fn new(what: &'static str, baseline_is: &'static str, promise: Promise) -> Self {
        let (baseline, wrenn) = (Samples::default(), Samples::default());
        Self { what, baseline_is, baseline, wrenn, promise, unit: Unit::Milliseconds }
    }

    /// Its samples are sizes.
    pub fn of_sizes(what: &'static str, baseline_is: &'static str, promise: Promise) -> Self {
        Self { unit: Unit::Kibibytes, ..Self::new(what, baseline_is, promise) }
    }

    /// Its samples are rates.
    pub fn of_rates(what: &'static str, baseline_is: &'static str, promise: Promise) -> Self {
        Self { unit: Unit::MebibytesPerSecond, ..Self::new(what, baseline_is, promise) }
    }

    fn compared(&self) -> Option<Compared> {
        let wrenn = self.wrenn.summary()?;
        match self.baseline.summary() {
            Some(baseline) => Some(Compared::new(&baseline, &wrenn, self.promise, self.unit)),
            None => Compared::alone(&wrenn, self.promise, self.unit),
        }
    }

    fn line(&self) -> Result<String> {
        let wrenn = self.wrenn.summary().with_context(|| format!("no samples of {}", self.what))?;
        let baseline = self.baseline.summary();
        let shown = |summary: &Summary| shown(summary, self.unit);
        let compared = self.compared();
        Ok(format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            self.what,
            self.baseline_is,
            baseline.as_ref().map_or("–".to_owned(), shown),
            shown(&wrenn),
            compared.as_ref().map_or("–".to_owned(), |c| c.difference.clone()),
            compared.as_ref().map_or("–".to_owned(), |c| c.promise.clone()),
            compared.as_ref().map_or("–", |c| c.verdict),
        ))
    }

    fn json(&self) -> Value {
        let of = |samples: &Samples| {
            samples
                .summary()
                .map(|s| json!({ "median": s.median, "p10": s.p10, "p90": s.p90, "count": s.count }))
        };
        json!({ "what": self.what, "baselineIs": self.baseline_is, "unit": self.unit.name(),
                "baseline": of(&self.baseline), "wrenn": of(&self.wrenn),
                "verdict": self.verdict() })
    }

    fn verdict(&self) -> Option<&'static str> {
        self.compared().map(|compared| compared.verdict)
    }
}

struct Compared {
    difference: String,
    promise: String,
    verdict: &'static str,
}

impl Compared {
    /// Without a baseline only what is promised in numbers can be judged.
    fn alone(wrenn: &Summary, promise: Promise, unit: Unit) -> Option<Self> {
        let Promise::Within(limit) = promise else { return None };
        Some(Self {
            difference: "–".into(),
            promise: format!("≤ {limit} {}", unit.name()),
            verdict: judged(wrenn.median <= limit),
        })
    }

    fn new(baseline: &Summary, wrenn: &Summary, promise: Promise, unit: Unit) -> Self {
        let (times, plus) = (wrenn.median / baseline.median, wrenn.median - baseline.median);
        let unit = unit.name();
        match promise {
            Promise::Within(limit) => Self {
                difference: format!("{times:.2}×"),
                promise: format!("≤ {limit} {unit}"),
                verdict: judged(wrenn.median <= limit),
            },
            Promise::Times(limit) => Self {
                difference: format!("{times:.2}×"),
                promise: format!("≤ {limit}×"),
                verdict: judged(times <= limit),
            },
            Promise::Share(limit) => Self {
                difference: format!("{times:.2}×"),
                promise: format!("≥ {limit}×"),
                verdict: judged(times >= limit),
            },
            Promise::Plus(limit) => Self {
                difference: format!("{plus:+.2} {unit}"),
                promise: format!("≤ +{limit} {unit}"),
                verdict: judged(plus <= limit),
            },
            Promise::None => Self {
                difference: format!("{times:.2}×, {plus:+.1} {unit}"),
                promise: "–".into(),
                verdict: "–",
            },
        }
    }
}

fn judged(kept: bool) -> &'static str {
    if kept { "PASS" } else { "MISS" }
}

fn shown(summary: &Summary, unit: Unit) -> String {
    format!("{:.1} ({:.1}–{:.1}) {}", summary.median, summary.p10, summary.p90, unit.name())
}

/// The whole table in Markdown.
pub fn markdown(rows: &[Row]) -> Result<String> {
    let mut lines = vec![
        "| what | baseline is | baseline | Wrenn | difference | promise | |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for row in rows {
        lines.push(row.line()?);
    }
    lines.push(String::new());
    lines
        .push("Medians (10th–90th percentile) of one run in which baseline and Wrenn took turns.".to_owned());
    Ok(lines.join("\n"))
}

/// The same for machines.
pub fn as_json(rows: &[Row]) -> Value {
    Value::Array(rows.iter().map(Row::json).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(baseline_ms: u64, wrenn_ms: u64, promise: Promise) -> Row {
        let mut row = Row::new("what", "baseline", promise);
        row.baseline.push(Duration::from_millis(baseline_ms));
        row.wrenn.push(Duration::from_millis(wrenn_ms));
        row
    }

    #[test]
    fn promises_are_judged_by_medians() {
        assert_eq!(row(100, 199, Promise::Times(2.0)).verdict(), Some("PASS"));
        assert_eq!(row(100, 201, Promise::Times(2.0)).verdict(), Some("MISS"));
        assert_eq!(row(100, 103, Promise::Plus(3.0)).verdict(), Some("PASS"));
        assert_eq!(row(100, 104, Promise::Plus(3.0)).verdict(), Some("MISS"));
        assert_eq!(row(100, 104, Promise::None).verdict(), Some("–"));
        assert_eq!(row(10, 50, Promise::Within(50.0)).verdict(), Some("PASS"));
        assert_eq!(row(100, 51, Promise::Within(50.0)).verdict(), Some("MISS"));
    }

    #[test]
    fn a_row_without_baseline_is_shown_alone() {
        let alone = Row { baseline: Samples::default(), ..row(1, 1500, Promise::None) };
        assert_eq!(
            alone.line().expect("a line"),
            "| what | baseline | – | 1500.0 (1500.0–1500.0) ms | – | – | – |"
        );
        assert_eq!(alone.verdict(), None);
        let within = Row { baseline: Samples::default(), ..row(1, 49, Promise::Within(50.0)) };
        assert_eq!(within.verdict(), Some("PASS"));
    }

    #[test]
    fn sizes_are_compared_as_times_are() {
        let mut sizes = Row::of_sizes("what", "baseline", Promise::Times(1.1));
        sizes.baseline.push_bytes(1 << 20);
        sizes.wrenn.push_bytes((1 << 20) + (1 << 16));
        assert_eq!(
            sizes.line().expect("a line"),
            "| what | baseline | 1024.0 (1024.0–1024.0) KiB | 1088.0 (1088.0–1088.0) KiB | 1.06× | ≤ 1.1× | PASS |"
        );
    }

    #[test]
    fn of_rates_more_is_better() {
        let mut rates = Row::of_rates("what", "baseline", Promise::Share(0.9));
        rates.baseline.push_rate(100 << 20, Duration::from_secs(1));
        rates.wrenn.push_rate(95 << 20, Duration::from_secs(1));
        assert_eq!(
            rates.line().expect("a line"),
            "| what | baseline | 100.0 (100.0–100.0) MiB/s | 95.0 (95.0–95.0) MiB/s | 0.95× | ≥ 0.9× | PASS |"
        );
        assert_eq!(Row { promise: Promise::Share(0.96), ..rates }.verdict(), Some("MISS"));
    }
}
