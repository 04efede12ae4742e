//! Three rings of points: each sample for ten minutes, averages over 30 s for two hours, over 5 min for a day.
//!
//! A capsule is not sampled while it is paused: its points have gaps, and say themselves when they were taken. At most
//! 1728 points of 32 bytes are held, 54 KiB.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a running capsule is looked at.
pub const SAMPLE_PERIOD: Duration = Duration::from_millis(500);
/// How far back the coarsest ring goes.
pub const LONGEST_RANGE: Duration = Duration::from_secs(24 * 3600);

/// How far back a ring goes, and what each of its points stands for.
#[derive(Debug, Clone, Copy)]
struct Tier {
    span: Duration,
    step: Duration,
}

impl Tier {
    const fn points(self) -> usize {
        (self.span.as_millis() / self.step.as_millis()) as usize
    }

    /// The window of time that a moment falls into.
    fn window(self, at_ns: i64) -> i64 {
        at_ns.div_euclid(nanoseconds(self.step))
    }
}

const SAMPLES: Tier = Tier { span: Duration::from_secs(600), step: SAMPLE_PERIOD };
const AVERAGES: [Tier; 2] = [
    Tier { span: Duration::from_secs(2 * 3600), step: Duration::from_secs(30) },
    Tier { span: LONGEST_RANGE, step: Duration::from_secs(300) },
];

/// Of what is written to a file. Another one is not read.
const FORMAT: u32 = 1;

/// The load of a VMM at a moment, or on the average until then.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "(i64, f64, u64, u64)", into = "(i64, f64, u64, u64)")]
pub struct Point {
    /// The end of what it stands for. Nanoseconds since the Unix epoch.
    pub at_ns: i64,
    /// Of one host CPU: 200 is two of them.
    pub cpu_percent: f64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl From<(i64, f64, u64, u64)> for Point {
    fn from((at_ns, cpu_percent, memory_bytes, disk_bytes): (i64, f64, u64, u64)) -> Self {
        Self { at_ns, cpu_percent, memory_bytes, disk_bytes }
    }
}

impl From<Point> for (i64, f64, u64, u64) {
    fn from(point: Point) -> Self {
        (point.at_ns, point.cpu_percent, point.memory_bytes, point.disk_bytes)
    }
}

/// What is known of one capsule's load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct History {
    format: u32,
    samples: VecDeque<Point>,
    averages: [Averages; 2],
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Averages {
    points: VecDeque<Point>,
    open: Option<Window>,
}

/// A window whose average is not closed yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Window {
    number: i64,
    last_ns: i64,
    count: u32,
    cpu: f64,
    memory: u128,
    disk: u128,
}

impl Default for History {
    fn default() -> Self {
        Self { format: FORMAT, samples: VecDeque::new(), averages: Default::default() }
    }
}

impl History {
    /// Takes in a sample. CPU is kept to a hundredth of a percent, which text holds exactly. Where the clock was set back, what lies after the sample is forgotten.
    pub fn push(&mut self, point: Point) {
        let point = Point { cpu_percent: hundredths(point.cpu_percent), ..point };
        push(&mut self.samples, SAMPLES, point);
        for (averages, tier) in self.averages.iter_mut().zip(AVERAGES) {
            averages.push(tier, point);
        }
    }

    pub fn newest(&self) -> Option<Point> {
        self.samples.back().copied()
    }

    /// The points of the last `range` before `now_ns`, oldest first, of the finest ring that goes back so far. The
    /// last average may be of a window that is not over.
    pub fn since(&self, range: Duration, now_ns: i64) -> Vec<Point> {
        let from = now_ns.saturating_sub(nanoseconds(range));
        let within = |point: &Point| point.at_ns > from;
        if range <= SAMPLES.span {
            return self.samples.iter().copied().filter(within).collect();
        }
        let averages = if range <= AVERAGES[0].span { &self.averages[0] } else { &self.averages[1] };
        let open = averages.open.as_ref().map(Window::average);
        averages.points.iter().copied().chain(open).filter(within).collect()
    }

    /// The samples after `at_ns`, oldest first, of the last ten minutes.
    pub fn after(&self, at_ns: i64) -> Vec<Point> {
        let first = self.samples.partition_point(|point| point.at_ns <= at_ns);
        self.samples.range(first..).copied().collect()
    }

    /// Whether it can have been written by this agent: in order, within its bounds, and of numbers.
    pub fn is_sound(&self) -> bool {
        let sound = |points: &VecDeque<Point>, tier: Tier| {
            points.len() <= tier.points()
                && points.iter().all(|point| point.cpu_percent.is_finite())
                && points.iter().zip(points.iter().skip(1)).all(|(one, next)| one.at_ns < next.at_ns)
        };
        self.format == FORMAT
            && sound(&self.samples, SAMPLES)
            && self.averages.iter().zip(AVERAGES).all(|(averages, tier)| {
                let open = averages.open.as_ref();
                sound(&averages.points, tier)
                    && open.is_none_or(|open| open.count > 0 && open.cpu.is_finite())
            })
    }
}

impl Averages {
    fn push(&mut self, tier: Tier, point: Point) {
        let number = tier.window(point.at_ns);
        // A window that lies after the sample is one of a clock that was set back.
        self.open.take_if(|open| open.last_ns >= point.at_ns);
        if let Some(over) = self.open.take_if(|open| open.number != number) {
            push(&mut self.points, tier, over.average());
        }
        drop_after(&mut self.points, point.at_ns);
        let open =
            self.open.get_or_insert(Window { number, last_ns: 0, count: 0, cpu: 0.0, memory: 0, disk: 0 });
        open.last_ns = point.at_ns;
        open.count += 1;
        open.cpu += point.cpu_percent;
        open.memory += u128::from(point.memory_bytes);
        open.disk += u128::from(point.disk_bytes);
    }
}

impl Window {
    fn average(&self) -> Point {
        let mean = |sum: u128| u64::try_from(sum / u128::from(self.count.max(1))).unwrap_or(u64::MAX);
        Point {
            at_ns: self.last_ns,
            cpu_percent: hundredths(self.cpu / f64::from(self.count.max(1))),
            memory_bytes: mean(self.memory),
            disk_bytes: mean(self.disk),
        }
    }
}

fn push(points: &mut VecDeque<Point>, tier: Tier, point: Point) {
    drop_after(points, point.at_ns);
    if points.len() >= tier.points() {
        points.pop_front();
    } else if points.len() == points.capacity() {
        // Not doubled: the ring must not take more than it holds.
        points.reserve_exact((tier.points() - points.len()).min(points.len().max(64)));
    }
    points.push_back(point);
}

fn drop_after(points: &mut VecDeque<Point>, at_ns: i64) {
    while points.back().is_some_and(|last| last.at_ns >= at_ns) {
        points.pop_back();
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn point(at_ns: i64, value: u32) -> Point {
        Point {
            at_ns,
            cpu_percent: value.into(),
            memory_bytes: value.into(),
            disk_bytes: u64::from(value) * 2,
        }
    }

    /// Samples every half second, from `from_ns` on.
    fn life(history: &mut History, from_ns: i64, samples: u32, value: u32) -> i64 {
        for n in 0..i64::from(samples) {
            history.push(point(from_ns + n * SECOND / 2, value));
        }
        from_ns + i64::from(samples - 1) * SECOND / 2
    }

    #[test]
    fn each_range_is_answered_by_the_finest_ring_that_reaches_so_far() {
        let mut history = History::default();
        // A day and a bit.
        let now = life(&mut history, 300 * SECOND, 2 * (24 * 3600 + 900), 7);
        assert_eq!(history.since(Duration::from_secs(600), now).len(), 1200);
        assert_eq!(history.since(Duration::from_secs(60), now).len(), 120);
        // One more than the ring has: the window that is open.
        assert_eq!(history.since(Duration::from_secs(7200), now).len(), 240);
        assert_eq!(history.since(LONGEST_RANGE, now).len(), 288);
        assert!(history.since(LONGEST_RANGE, now).iter().all(|point| point.memory_bytes == 7));
        let held =
            history.samples.capacity() + history.averages.iter().map(|a| a.points.capacity()).sum::<usize>();
        assert_eq!(held, 1728);
        assert!(held * size_of::<Point>() < 100 << 10);
    }

    #[test]
    fn a_pause_is_a_gap_and_nothing_is_made_up_for_it() {
        let mut history = History::default();
        let paused = life(&mut history, 0, 100, 10);
        let resumed = paused + 3600 * SECOND;
        let now = life(&mut history, resumed, 100, 30);
        let all = history.since(Duration::from_secs(7200), now);
        assert!(all.iter().all(|point| point.at_ns <= paused || point.at_ns >= resumed), "{all:?}");
        assert!(all.iter().all(|point| [10, 30].contains(&point.memory_bytes)), "no average across the gap");
        assert_eq!(
            history.since(Duration::from_secs(600), now).len(),
            100,
            "the earlier life is out of range"
        );
    }

    #[test]
    fn a_clock_that_was_set_back_takes_its_future_with_it() {
        let mut history = History::default();
        life(&mut history, 1000 * SECOND, 200, 1);
        let now = life(&mut history, 1040 * SECOND, 1, 2);
        let all = history.since(Duration::from_secs(600), now);
        assert_eq!(all.len(), 81);
        assert_eq!(all.last(), Some(&point(1040 * SECOND, 2)));
        assert!(history.is_sound());
    }

    /// Lives of so many samples, with so long a pause (or a step back) before each.
    fn lives() -> impl Strategy<Value = Vec<(i64, u32, u32)>> {
        proptest::collection::vec((-7200..100_000i64, 1..3000u32, 0..1000u32), 1..6)
    }

    proptest! {
        #[test]
        fn whatever_happens_the_rings_are_sound_and_hold_the_newest(lives in lives()) {
            let mut history = History::default();
            let mut now = 1_000_000 * SECOND;
            for (pause, samples, value) in lives {
                now = life(&mut history, now + pause * SECOND + 1, samples, value);
                prop_assert!(history.is_sound());
                prop_assert_eq!(history.newest(), Some(point(now, value)));
                for range in [1, 600, 601, 7200, 7201, 86_400] {
                    let points = history.since(Duration::from_secs(range), now);
                    prop_assert!(points.iter().all(|p| p.at_ns > now - range as i64 * SECOND && p.at_ns <= now));
                    prop_assert!(points.windows(2).all(|pair| pair[0].at_ns < pair[1].at_ns));
                    prop_assert_eq!(points.last().map(|p| p.at_ns), Some(now), "range {}", range);
                }
            }
        }

        #[test]
        fn an_average_is_that_of_its_window(values in proptest::collection::vec(0..10_000u32, 1..400)) {
            let mut history = History::default();
            for (n, value) in values.iter().enumerate() {
                history.push(point(n as i64 * SECOND / 2, *value));
            }
            let now = (values.len() as i64 - 1) * SECOND / 2;
            let averages = history.since(Duration::from_secs(7200), now);
            // 60 samples fall into 30 s.
            for (average, window) in averages.iter().zip(values.chunks(60)) {
                let sum: u64 = window.iter().map(|value| u64::from(*value)).sum();
                prop_assert_eq!(average.memory_bytes, sum / window.len() as u64);
                prop_assert!((average.cpu_percent - sum as f64 / window.len() as f64).abs() <= 0.0051);
            }
            prop_assert_eq!(averages.len(), values.len().div_ceil(60));
        }

        #[test]
        fn what_is_written_is_what_is_read(lives in lives()) {
            let mut history = History::default();
            let mut now = 0;
            for (pause, samples, value) in lives {
                now = life(&mut history, now + pause * SECOND + 1, samples, value);
            }
            let text = serde_json::to_vec(&history).unwrap();
            let read: History = serde_json::from_slice(&text).unwrap();
            prop_assert!(read.is_sound());
            for range in [600, 7200, 86_400].map(Duration::from_secs) {
                let (written, read) = (history.since(range, now), read.since(range, now));
                prop_assert_eq!(written.len(), read.len());
                for (one, other) in written.into_iter().zip(read) {
                    // Text may differ from a number in its last digit.
                    prop_assert!((one.cpu_percent - other.cpu_percent).abs() < 1e-9);
                    prop_assert_eq!(one, Point { cpu_percent: one.cpu_percent, ..other });
                }
            }
        }
    }
}
