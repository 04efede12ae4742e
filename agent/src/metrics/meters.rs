//! One meter per capsule, and the one task that reads them all.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use wrenn_vmm::paths::HostPaths;
use wrenn_vmm::process::VmmProcess;

use super::file;
use super::history::{History, Point, SAMPLE_PERIOD};
use super::reading;
use crate::capsule::{CapsuleRegistry, capsule_name};
use crate::clock::now_ns;
use crate::ids::CapsuleId;

/// The meters of a host's capsules: of those that ran under this agent, and of those that were asked for.
#[derive(Debug)]
pub struct Meters {
    paths: HostPaths,
    table: Mutex<HashMap<CapsuleId, Arc<Meter>>>,
}

#[derive(Debug)]
struct Meter {
    /// Where the history is kept while the capsule is paused.
    file: PathBuf,
    disk: PathBuf,
    state: Mutex<State>,
    newest: watch::Sender<Option<Point>>,
}

#[derive(Debug)]
struct State {
    history: History,
    /// What the next sample is compared with. None before the first of a life.
    before: Option<Reading>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    pid: i32,
    at: Instant,
    cpu: Duration,
}

impl Meters {
    pub fn new(paths: HostPaths) -> Self {
        Self { paths, table: Mutex::default() }
    }

    /// The load of the last `range`, oldest first.
    pub fn since(&self, id: CapsuleId, range: Duration) -> Vec<Point> {
        self.meter(id).state().history.since(range, now_ns())
    }

    /// The newest point, then each that follows.
    pub fn follow(&self, id: CapsuleId) -> Points {
        let meter = self.meter(id);
        let mut newest = meter.newest.subscribe();
        // What is there already is new to this reader.
        newest.mark_changed();
        Points { meter, newest, told: None, waiting: VecDeque::new() }
    }

    /// Writes a capsule's history into its directory, which must be there. Without it only the metrics are lost.
    pub async fn flush(&self, id: CapsuleId) {
        let Some(meter) = self.table().get(&id).cloned() else { return };
        let stored = tokio::task::spawn_blocking(move || {
            let history = meter.state().history.clone();
            file::store(&meter.file, &history)
        });
        if let Ok(Err(error)) = stored.await {
            tracing::warn!(capsule = %id, error = %crate::report(&error), "its metrics were not kept");
        }
    }

    /// Reads every machine once and forgets who is not among the capsules. Blocks.
    fn read_all(&self, capsules: &HashMap<CapsuleId, Option<VmmProcess>>) {
        for (id, machine) in capsules {
            match machine {
                Some(process) if process.has_exited().is_none() => {
                    // One that ends meanwhile has had its last sample.
                    let _ended = self.meter(*id).read(process.identity().pid);
                }
                _ => {
                    if let Some(meter) = self.table().get(id) {
                        meter.state().before = None;
                    }
                }
            }
        }
        // Someone may have asked for one that is newer than the list.
        self.table().retain(|id, meter| capsules.contains_key(id) || meter.newest.receiver_count() > 0);
    }

    /// A capsule's meter; goes on where its file ends, if it was not read yet.
    fn meter(&self, id: CapsuleId) -> Arc<Meter> {
        if let Some(meter) = self.table().get(&id) {
            return meter.clone();
        }
        let home = self.paths.capsule(&capsule_name(id));
        let history = file::load(&home.metrics());
        let meter = Meter {
            file: home.metrics(),
            disk: home.disk(),
            newest: watch::Sender::new(history.newest()),
            state: Mutex::new(State { history, before: None }),
        };
        self.table().entry(id).or_insert_with(|| Arc::new(meter)).clone()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<CapsuleId, Arc<Meter>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a sample; the first of a life only says what the second is compared with.
    fn read(&self, pid: i32) -> io::Result<()> {
        let usage = reading::usage(pid)?;
        let now = Reading { pid, at: Instant::now(), cpu: usage.cpu };
        let disk_bytes = reading::allocated(&self.disk)?;
        let mut state = self.state();
        let before = state.before.replace(now);
        let Some(cpu_percent) = before.and_then(|before| now.percent_since(before)) else { return Ok(()) };
        let point = Point { at_ns: now_ns(), cpu_percent, memory_bytes: usage.memory_bytes, disk_bytes };
        state.history.push(point);
        self.newest.send_replace(state.history.newest());
        Ok(())
    }
}

/// One reader's way through the points of a capsule, for as long as it is measured.
#[derive(Debug)]
pub struct Points {
    meter: Arc<Meter>,
    newest: watch::Receiver<Option<Point>>,
    /// When the last point was taken that this reader has.
    told: Option<i64>,
    waiting: VecDeque<Point>,
}

impl Points {
    /// The next point, once there is one. Who was slow gets all that it missed, up to ten minutes of it.
    pub async fn next(&mut self) -> Option<Point> {
        while self.waiting.is_empty() {
            self.newest.changed().await.ok()?;
            let newest = *self.newest.borrow_and_update();
            match (newest, self.told) {
                (Some(newest), Some(told)) if told < newest.at_ns => {
                    self.waiting = self.meter.state().history.after(told).into();
                }
                // The first one, or the first after the clock was set back.
                (newest, _) => self.waiting.extend(newest),
            }
        }
        let next = self.waiting.pop_front()?;
        self.told = Some(next.at_ns);
        Some(next)
    }
}

impl Reading {
    fn percent_since(self, before: Self) -> Option<f64> {
        let elapsed = self.at.checked_duration_since(before.at)?;
        if self.pid != before.pid || elapsed.is_zero() {
            return None;
        }
        Some(self.cpu.saturating_sub(before.cpu).as_secs_f64() / elapsed.as_secs_f64() * 100.0)
    }
}

/// Samples all running capsules until `stop`.
pub async fn sample(capsules: Arc<CapsuleRegistry>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SAMPLE_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let machines = capsules.machines();
        let meters = capsules.engine().meters.clone();
        // Files of /proc mostly, yet a disk that is busy must not hold up anybody else.
        if let Err(error) = tokio::task::spawn_blocking(move || meters.read_all(&machines)).await {
            tracing::error!(%error, "the capsules' load could not be read");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meters() -> (tempfile::TempDir, Meters, CapsuleId) {
        let dir = tempfile::tempdir().unwrap();
        let meters = Meters::new(HostPaths::new(dir.path()).unwrap());
        let id = CapsuleId::from_u128(1);
        let home = meters.paths.capsule(&capsule_name(id));
        std::fs::create_dir_all(&home.directory).unwrap();
        std::fs::write(home.disk(), vec![1; 64 << 10]).unwrap();
        (dir, meters, id)
    }

    fn own_pid() -> i32 {
        std::process::id() as i32
    }

    #[tokio::test]
    async fn points_are_kept_over_an_agent_and_a_life_begins_without_one() {
        let (_dir, meters, id) = meters();
        let mut followed = meters.follow(id);
        let meter = meters.meter(id);
        meter.read(own_pid()).unwrap();
        assert_eq!(meters.since(id, Duration::from_secs(60)), []);
        meter.read(own_pid()).unwrap();
        let newest = followed.next().await;
        let points = meters.since(id, Duration::from_secs(60));
        assert_eq!(newest, points.last().copied());
        assert!(points[0].memory_bytes > 1 << 20 && points[0].disk_bytes >= 64 << 10, "{points:?}");

        meters.flush(id).await;
        let later = Meters::new(meters.paths.clone());
        assert_eq!(later.since(id, Duration::from_secs(60)), points);
    }

    #[test]
    fn what_is_gone_is_forgotten_unless_someone_watches() {
        let (_dir, meters, id) = meters();
        let watcher = meters.follow(id);
        meters.read_all(&HashMap::new());
        assert!(meters.table().contains_key(&id));
        drop(watcher);
        meters.read_all(&HashMap::new());
        assert!(meters.table().is_empty());
    }

    #[tokio::test]
    async fn who_reads_slowly_misses_nothing() {
        let (_dir, meters, id) = meters();
        let meter = meters.meter(id);
        let sample = async || {
            let before = meter.state().history.newest();
            // Points of one and the same moment are one.
            while meter.state().history.newest() == before {
                meter.read(own_pid()).unwrap();
                tokio::task::yield_now().await;
            }
            meter.state().history.newest()
        };
        sample().await;
        let present = sample().await;
        let mut slow = meters.follow(id);
        assert_eq!(slow.next().await, present, "what is there already, once");
        for _ in 0..3 {
            let mut taken = Vec::new();
            for _ in 0..5 {
                taken.push(sample().await);
            }
            for point in taken {
                assert_eq!(slow.next().await, point);
            }
        }
        let none = tokio::time::timeout(Duration::from_millis(50), slow.next()).await;
        assert!(none.is_err(), "none twice: {none:?}");
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_does_not_end_it() {
        let (_dir, meters, id) = meters();
        let meter = meters.meter(id);
        let put = |at_ns| {
            let point = Point { at_ns, cpu_percent: 1.0, memory_bytes: 1, disk_bytes: 1 };
            meter.state().history.push(point);
            meter.newest.send_replace(Some(point));
        };
        let mut followed = meters.follow(id);
        for at_ns in [1_000, 2_000, 500, 600] {
            put(at_ns);
            assert_eq!(followed.next().await.map(|point| point.at_ns), Some(at_ns));
        }
    }

    #[test]
    fn another_process_is_not_compared_with_the_one_before() {
        let now = Instant::now();
        let reading = |pid, millis| Reading {
            pid,
            at: now + Duration::from_millis(millis),
            cpu: Duration::from_millis(millis / 2),
        };
        assert_eq!(reading(1, 500).percent_since(reading(1, 0)), Some(50.0));
        assert_eq!(reading(2, 500).percent_since(reading(1, 0)), None);
        assert_eq!(reading(1, 0).percent_since(reading(1, 0)), None);
    }
}
