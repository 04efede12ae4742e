//! The table: Wrenn beside its baseline, with the promise and whether it was kept.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wrenn_tests::stats::{Summary, summarize};

/// What the median is promised to be, measured by the baseline's.
#[derive(Debug, Clone, Copy)]
pub enum Promise {
    /// At most this many times the baseline.
    Times(f64),
    /// At most this many milliseconds more than the baseline.
    Plus(f64),
    /// Shown for orientation.
    None,
}

/// One line: what was measured, with all its samples.
#[derive(Debug)]
pub struct Row {
    pub what: &'static str,
    pub baseline_is: &'static str,
    pub baseline: Vec<Duration>,
    pub wrenn: Vec<Duration>,
    pub promise: Promise,
}

impl Row {
    pub fn new(what: &'static str, baseline_is: &'static str, promise: Promise) -> Self {
        Self { what, baseline_is, baseline: Vec::new(), wrenn: Vec::new(), promise }
    }

    fn line(&self) -> Result<String> {
        let wrenn = summarize(&self.wrenn).with_context(|| format!("no samples of {}", self.what))?;
        let baseline = summarize(&self.baseline);
        let compared = baseline.map(|baseline| Compared::new(&baseline, &wrenn, self.promise));
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
        let of = |samples: &[Duration]| {
            summarize(samples)
                .map(|s| json!({ "medianMs": s.median, "p10Ms": s.p10, "p90Ms": s.p90, "count": s.count }))
        };
        json!({ "what": self.what, "baselineIs": self.baseline_is,
                "baseline": of(&self.baseline), "wrenn": of(&self.wrenn),
                "verdict": self.verdict() })
    }

    fn verdict(&self) -> Option<&'static str> {
        let (baseline, wrenn) = (summarize(&self.baseline)?, summarize(&self.wrenn)?);
        Some(Compared::new(&baseline, &wrenn, self.promise).verdict)
    }
}

struct Compared {
    difference: String,
    promise: String,
    verdict: &'static str,
}

impl Compared {
    fn new(baseline: &Summary, wrenn: &Summary, promise: Promise) -> Self {
        let (times, plus) = (wrenn.median / baseline.median, wrenn.median - baseline.median);
        let judged = |kept: bool| if kept { "PASS" } else { "MISS" };
        match promise {
            Promise::Times(limit) => Self {
                difference: format!("{times:.2}×"),
                promise: format!("≤ {limit}×"),
                verdict: judged(times <= limit),
            },
            Promise::Plus(limit) => Self {
                difference: format!("{plus:+.2} ms"),
                promise: format!("≤ +{limit} ms"),
                verdict: judged(plus <= limit),
            },
            Promise::None => {
                Self {
                    difference: format!("{times:.2}×, {plus:+.1} ms"), promise: "–".into(), verdict: "–"
                }
            }
        }
    }
}

fn shown(summary: &Summary) -> String {
    format!("{:.1} ({:.1}–{:.1}) ms", summary.median, summary.p10, summary.p90)
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
        Row {
            baseline: vec![Duration::from_millis(baseline_ms)],
            wrenn: vec![Duration::from_millis(wrenn_ms)],
            ..Row::new("what", "baseline", promise)
        }
    }

    #[test]
    fn promises_are_judged_by_medians() {
        assert_eq!(row(100, 199, Promise::Times(2.0)).verdict(), Some("PASS"));
        assert_eq!(row(100, 201, Promise::Times(2.0)).verdict(), Some("MISS"));
        assert_eq!(row(100, 103, Promise::Plus(3.0)).verdict(), Some("PASS"));
        assert_eq!(row(100, 104, Promise::Plus(3.0)).verdict(), Some("MISS"));
        assert_eq!(row(100, 104, Promise::None).verdict(), Some("–"));
    }

    #[test]
    fn a_row_without_baseline_is_shown_alone() {
        let alone = Row { baseline: Vec::new(), ..row(1, 1500, Promise::None) };
        assert_eq!(
            alone.line().expect("a line"),
            "| what | baseline | – | 1500.0 (1500.0–1500.0) ms | – | – | – |"
        );
        assert_eq!(alone.verdict(), None);
    }
}
