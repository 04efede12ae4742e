//! Order statistics of a handful of samples.

use std::time::Duration;

/// The three numbers a row of the benchmark shows, in the samples' unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
    pub count: usize,
}

/// In milliseconds. Nothing if there is no sample.
pub fn summarize(samples: &[Duration]) -> Option<Summary> {
    summarize_values(samples.iter().map(|sample| sample.as_secs_f64() * 1000.0).collect())
}

/// Of any unit. Nothing if there is no sample.
pub fn summarize_values(mut samples: Vec<f64>) -> Option<Summary> {
    samples.sort_by(f64::total_cmp);
    Some(Summary {
        median: percentile(&samples, 50.0)?,
        p10: percentile(&samples, 10.0)?,
        p90: percentile(&samples, 90.0)?,
        count: samples.len(),
    })
}

/// The `percent`th percentile of ascending values, interpolated linearly between the two nearest ranks
/// (the definition R calls type 7).
pub fn percentile(ascending: &[f64], percent: f64) -> Option<f64> {
    let last = ascending.len().checked_sub(1)?;
    let rank = last as f64 * percent / 100.0;
    let below = ascending[rank.floor() as usize];
    let above = ascending[rank.ceil() as usize];
    Some(below + (above - below) * rank.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolates_between_ranks() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(percentile(&values, 50.0), Some(2.5));
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&values, 100.0), Some(4.0));
        assert_eq!(percentile(&[7.0], 90.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn summarizes_in_any_order() {
        let samples: Vec<Duration> = [30, 10, 50, 20, 40].map(Duration::from_millis).to_vec();
        let summary = summarize(&samples).expect("samples");
        assert!((summary.median - 30.0).abs() < 1e-9);
        assert!((summary.p10 - 14.0).abs() < 1e-9);
        assert!((summary.p90 - 46.0).abs() < 1e-9);
        assert_eq!(summary.count, 5);
        assert_eq!(summarize(&[]), None);
    }
}
