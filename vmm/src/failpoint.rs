//! Failpoints: places between two steps where a test lets the program fail, wait or die.
//!
//! They are compiled in always and cost one relaxed load while they are off. Two variables switch them on:
//! - `WRENN_FAILPOINTS` holds orders, as in `pause.saved=error*1;create.recorded=kill`;
//! - `WRENN_FAILPOINTS_FILE` names a file with orders, which is read anew at every failpoint, so that one run can be
//!   given one order after another. A file that is not there holds none.
//!
//! An order is `NAME=ACTION`: `error` lets the operation fail there, `delay(200ms)` holds it up, `kill` ends this
//! process by SIGKILL. `*N` behind an action lets it happen the first N times only. `#7` in the place of a name is the
//! seventh failpoint that is come to, whichever that is. An order that cannot be followed ends the program: a test that
//! orders what does not exist would test nothing.

use std::{
    fmt, fs, io,
    path::PathBuf,
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::failure::Failure;

/// What is under way when a failpoint is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The first create of a template and size: it is booted and its golden snapshot taken.
    Golden,
    Create,
    /// A create that takes a machine which was made ahead.
    Warm,
    Pause,
    /// A pause that failed after its vCPUs had stopped: the capsule goes on.
    Thaw,
    Resume,
    Destroy,
    /// A running capsule becomes a template.
    Snapshot,
    /// The disk of a running capsule becomes the image of a template.
    Flatten,
    Fork,
    /// The generations of a memory that was paused often become one.
    Merge,
    /// A disk of the store dm-snapshot becomes a device, as in every create and resume there.
    Attach,
    /// And ceases to be one, as in every pause and destroy.
    Detach,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Golden => "golden",
            Self::Create => "create",
            Self::Warm => "warm",
            Self::Pause => "pause",
            Self::Thaw => "thaw",
            Self::Resume => "resume",
            Self::Destroy => "destroy",
            Self::Snapshot => "snapshot",
            Self::Flatten => "flatten",
            Self::Fork => "fork",
            Self::Merge => "merge",
            Self::Attach => "attach",
            Self::Detach => "detach",
        })
    }
}

/// One place.
#[derive(Debug, PartialEq, Eq)]
pub struct Point {
    pub name: &'static str,
    /// False past the point of no return, where there is nobody left to be told of an error.
    pub may_fail: bool,
    /// Those that pass it every time they are done.
    pub operations: &'static [Operation],
}

const fn fallible(name: &'static str, operations: &'static [Operation]) -> Point {
    Point { name, may_fail: true, operations }
}

const fn sure(name: &'static str, operations: &'static [Operation]) -> Point {
    Point { name, may_fail: false, operations }
}

use Operation::{
    Attach, Create, Destroy, Detach, Flatten, Fork, Golden, Merge, Pause, Resume, Snapshot, Thaw, Warm,
};

/// Every failpoint there is. `wrenn-agent failpoints` prints them; a test walks them all.
pub const POINTS: &[Point] = &[
    fallible("golden.home", &[Golden]),
    fallible("image.copied", &[Golden]),
    fallible("golden.parts", &[Golden]),
    fallible("golden.booted", &[Golden]),
    fallible("golden.ready", &[Golden]),
    fallible("golden.begun", &[Golden]),
    fallible("golden.saved", &[Golden]),
    fallible("golden.cloned", &[Golden]),
    fallible("golden.committed", &[Golden]),
    fallible("golden.dismantled", &[Golden]),
    fallible("create.home", &[Create]),
    fallible("create.recorded", &[Create]),
    fallible("create.golden", &[Create]),
    fallible("slot.making", &[Create]),
    fallible("launch.begun", &[Create, Resume]),
    fallible("launch.parts", &[Create, Resume]),
    fallible("launch.restricted", &[Create, Resume]),
    fallible("launch.restored", &[Create, Resume]),
    fallible("launch.connected", &[Create, Resume]),
    fallible("handover.reseeded", &[Create, Resume]),
    fallible("launch.handed-over", &[Create, Resume]),
    sure("launch.served", &[Create, Resume]),
    fallible("pool.moved", &[Warm]),
    fallible("pool.attached", &[Warm]),
    fallible("pool.restricted", &[Warm]),
    fallible("pool.resumed", &[Warm]),
    fallible("pool.handed-over", &[Warm]),
    sure("pause.announced", &[Pause]),
    fallible("pause.prepared", &[Pause]),
    fallible("pause.stopped", &[Pause]),
    fallible("pause.begun", &[Pause]),
    fallible("pause.saved", &[Pause]),
    fallible("commit.described", &[Golden, Pause, Snapshot]),
    fallible("commit.synced", &[Golden, Pause, Snapshot]),
    fallible("commit.renamed", &[Golden, Pause, Snapshot]),
    fallible("commit.visible", &[Golden, Pause, Snapshot]),
    fallible("pause.committed", &[Pause]),
    sure("pause.thawed", &[Thaw]),
    sure("pause.recorded", &[Pause]),
    sure("pause.released", &[Pause]),
    fallible("dismantle.ended", &[Pause, Destroy]),
    fallible("dismantle.removed", &[Pause, Destroy]),
    fallible("dismantle.released", &[Pause, Destroy]),
    sure("destroy.announced", &[Destroy]),
    fallible("destroy.dismantled", &[Destroy]),
    fallible("destroy.forgotten", &[Destroy]),
    fallible("destroy.removed", &[Destroy]),
    fallible("moment.prepared", &[Snapshot, Flatten, Fork]),
    fallible("moment.stopped", &[Snapshot, Flatten, Fork]),
    fallible("moment.saved", &[Snapshot, Flatten, Fork]),
    fallible("snapshot.taken", &[Snapshot]),
    fallible("snapshot.flattened", &[Snapshot]),
    fallible("snapshot.recorded", &[Snapshot]),
    fallible("flatten.taken", &[Flatten]),
    fallible("flatten.compacted", &[Flatten]),
    fallible("flatten.copied", &[Flatten]),
    fallible("flatten.written", &[Flatten]),
    fallible("flatten.visible", &[Flatten]),
    fallible("fork.taken", &[Fork]),
    fallible("fork.visible", &[Fork]),
    fallible("fork.restored", &[Fork]),
    fallible("fork.gathered", &[Fork]),
    sure("fork.born", &[Fork]),
    sure("fork.removed", &[Fork]),
    fallible("merge.written", &[Merge]),
    fallible("merge.synced", &[Merge]),
    fallible("merge.described", &[Merge]),
    fallible("merge.header-synced", &[Merge]),
    fallible("merge.renamed", &[Merge]),
    fallible("merge.committed", &[Merge]),
    fallible("merge.removed", &[Merge]),
    fallible("attach.base", &[Attach]),
    fallible("attach.made", &[Attach]),
    fallible("attach.loaded", &[Attach]),
    fallible("attach.mapped", &[Attach]),
    fallible("detach.unmapped", &[Detach]),
];

/// The listed failpoint of this name; for [`failpoint!`](crate::failpoint!), which asks while it is compiled.
pub const fn listed(name: &str, may_fail: bool) -> &'static Point {
    let mut index = 0;
    while index < POINTS.len() {
        let point = &POINTS[index];
        if same(point.name, name) {
            assert!(point.may_fail == may_fail, "POINTS says otherwise whether this failpoint may fail");
            return point;
        }
        index += 1;
    }
    panic!("this failpoint is not listed in wrenn_vmm::failpoint::POINTS")
}

const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

/// Passes a failpoint:
/// - `failpoint!("pause.saved").await` in asynchronous code, a `Result<(), Failure>`;
/// - `failpoint!(blocking "commit.synced")` in code that may block, the same;
/// - `failpoint!(sure "pause.recorded").await` where nothing can fail any more.
#[macro_export]
macro_rules! failpoint {
    (blocking $name:literal) => {{
        const POINT: &$crate::failpoint::Point = $crate::failpoint::listed($name, true);
        $crate::failpoint::reach(POINT)
    }};
    (sure $name:literal) => {{
        const POINT: &$crate::failpoint::Point = $crate::failpoint::listed($name, false);
        async {
            if $crate::failpoint::are_on() {
                $crate::failpoint::pass_surely(POINT).await;
            }
        }
    }};
    ($name:literal) => {{
        const POINT: &$crate::failpoint::Point = $crate::failpoint::listed($name, true);
        async { if $crate::failpoint::are_on() { $crate::failpoint::pass(POINT).await } else { Ok(()) } }
    }};
}

const ORDERS: &str = "WRENN_FAILPOINTS";
const ORDERS_FILE: &str = "WRENN_FAILPOINTS_FILE";

static ON: AtomicBool = AtomicBool::new(false);
static PLAN: Mutex<Plan> = Mutex::new(Plan { fixed: Vec::new(), file: None, reached: 0 });

/// Whether any was ever ordered.
pub fn are_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// An order that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrder {
    #[error("{ORDERS}: there is no failpoint {0:?}; `wrenn-agent failpoints` lists them")]
    Unknown(String),
    #[error("{ORDERS}: nothing can fail at {0} any more, only `kill` and `delay(…)` happen there")]
    CannotFail(&'static str),
    #[error("{ORDERS}: {0:?} is no order, one is as `pause.saved=error*1`, `…=kill` or `…=delay(200ms)`")]
    Malformed(String),
    #[error("{ORDERS_FILE}: {0} cannot be read: {1}")]
    File(PathBuf, String),
}

/// Switches failpoints on if the environment says so.
pub fn set_up() -> Result<(), InvalidOrder> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let orders = set(ORDERS).map(|text| text.to_string_lossy().into_owned());
    let file = set(ORDERS_FILE).map(PathBuf::from);
    if orders.is_none() && file.is_none() {
        return Ok(());
    }
    let fixed = parse(&orders.unwrap_or_default())?;
    let mut plan = PLAN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = file.map(|path| OrderFile { path, text: String::new(), orders: Vec::new() });
    *plan = Plan { fixed, file, reached: 0 };
    plan.read_file()?;
    ON.store(true, Ordering::Relaxed);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Error,
    Delay(Duration),
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Named(&'static str),
    /// Counted from 1.
    Reached(u64),
}

#[derive(Debug, PartialEq, Eq)]
struct Order {
    place: Place,
    action: Action,
    /// How often it is still to happen.
    left: Option<u32>,
}

struct OrderFile {
    path: PathBuf,
    /// As it was read last: with the same text the counts go on.
    text: String,
    orders: Vec<Order>,
}

struct Plan {
    fixed: Vec<Order>,
    file: Option<OrderFile>,
    /// How many failpoints were come to.
    reached: u64,
}

impl Plan {
    fn read_file(&mut self) -> Result<(), InvalidOrder> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let text = match fs::read_to_string(&file.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(InvalidOrder::File(file.path.clone(), error.to_string())),
        };
        if text != file.text {
            file.orders = parse(&text)?;
            file.text = text;
        }
        Ok(())
    }

    /// What is to happen at the point now.
    fn due(&mut self, point: &'static str) -> Result<Option<Action>, InvalidOrder> {
        self.read_file()?;
        self.reached += 1;
        let here = [Place::Named(point), Place::Reached(self.reached)];
        let mut orders = self.fixed.iter_mut().chain(self.file.iter_mut().flat_map(|file| &mut file.orders));
        let Some(order) = orders.find(|order| here.contains(&order.place) && order.left != Some(0)) else {
            return Ok(None);
        };
        order.left = order.left.map(|left| left - 1);
        Ok(Some(order.action))
    }
}

fn parse(text: &str) -> Result<Vec<Order>, InvalidOrder> {
    text.split([';', ',', '\n']).map(str::trim).filter(|order| !order.is_empty()).map(parse_order).collect()
}

fn parse_order(text: &str) -> Result<Order, InvalidOrder> {
    let malformed = || InvalidOrder::Malformed(text.to_owned());
    let (name, what) = text.split_once('=').ok_or_else(malformed)?;
    let place = match name.strip_prefix('#') {
        Some(number) => Place::Reached(number.parse().map_err(|_| malformed())?),
        None => Place::Named(named(name)?.name),
    };
    let (action, left) = match what.split_once('*') {
        Some((action, times)) => (action, Some(times.parse().map_err(|_| malformed())?)),
        None => (what, None),
    };
    let action = match action {
        "error" => {
            if let Place::Named(name) = place
                && !named(name)?.may_fail
            {
                return Err(InvalidOrder::CannotFail(name));
            }
            Action::Error
        }
        "kill" => Action::Kill,
        other => {
            let millis = other.strip_prefix("delay(").and_then(|rest| rest.strip_suffix("ms)"));
            Action::Delay(Duration::from_millis(
                millis.and_then(|millis| millis.parse().ok()).ok_or_else(malformed)?,
            ))
        }
    };
    Ok(Order { place, action, left })
}

fn named(name: &str) -> Result<&'static Point, InvalidOrder> {
    POINTS.iter().find(|point| point.name == name).ok_or_else(|| InvalidOrder::Unknown(name.to_owned()))
}

fn due(point: &Point) -> Option<Action> {
    let due = PLAN.lock().unwrap_or_else(PoisonError::into_inner).due(point.name);
    match due {
        Ok(action) => {
            if let Some(action) = action {
                tracing::warn!(failpoint = point.name, ?action, "passed");
            }
            action
        }
        Err(error) => {
            tracing::error!(%error, "ending");
            eprintln!("{error}");
            process::exit(2)
        }
    }
}

/// See [`failpoint!`](crate::failpoint!).
pub async fn pass(point: &'static Point) -> Result<(), Failure> {
    match due(point) {
        None => Ok(()),
        Some(Action::Error) => Err(ordered(point)),
        Some(Action::Kill) => die(),
        Some(Action::Delay(time)) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
    }
}

/// See [`failpoint!`](crate::failpoint!).
pub async fn pass_surely(point: &'static Point) {
    // An order by name was refused when it was read; one by number does nothing here.
    let _passed_over = pass(point).await;
}

/// See [`failpoint!`](crate::failpoint!); for helpers that are told which failpoint they come to, by [`listed`].
pub fn reach(point: &'static Point) -> Result<(), Failure> {
    if are_on() { pass_blocking(point) } else { Ok(()) }
}

fn pass_blocking(point: &'static Point) -> Result<(), Failure> {
    match due(point) {
        None => Ok(()),
        Some(Action::Error) => Err(ordered(point)),
        Some(Action::Kill) => die(),
        Some(Action::Delay(time)) => {
            thread::sleep(time);
            Ok(())
        }
    }
}

fn ordered(point: &Point) -> Failure {
    Failure::new(format!("passing the failpoint {}", point.name), io::Error::other("ordered to fail"))
}

/// Without any farewell, as a crash.
fn die() -> ! {
    let _sent = kill(Pid::this(), Signal::SIGKILL);
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(fixed: &str) -> Plan {
        Plan { fixed: parse(fixed).unwrap(), file: None, reached: 0 }
    }

    #[test]
    fn orders_are_read_and_followed_as_often_as_they_say() {
        let mut plan = plan("pause.saved=error*2; create.recorded=kill;\n pause.stopped=delay(200ms)");
        let mut times = || plan.due("pause.saved").unwrap();
        assert_eq!([times(), times(), times()], [Some(Action::Error), Some(Action::Error), None]);
        for _ in 0..3 {
            assert_eq!(plan.due("create.recorded").unwrap(), Some(Action::Kill));
        }
        assert_eq!(plan.due("pause.stopped").unwrap(), Some(Action::Delay(Duration::from_millis(200))));
        assert_eq!(plan.due("pause.begun").unwrap(), None);
    }

    #[test]
    fn an_order_may_be_for_the_nth_failpoint_reached() {
        let mut plan = plan("#3=kill,pause.saved=error*1");
        assert_eq!(plan.due("pause.begun").unwrap(), None);
        assert_eq!(plan.due("pause.saved").unwrap(), Some(Action::Error));
        assert_eq!(plan.due("pause.saved").unwrap(), Some(Action::Kill));
        assert_eq!(plan.due("pause.saved").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_ordered_is_one_clear_line() {
        for (text, line) in [
            ("pause.saved=error;pause.savd=kill", "there is no failpoint \"pause.savd\""),
            ("pause.recorded=error", "nothing can fail at pause.recorded"),
            ("pause.saved", "\"pause.saved\" is no order"),
            ("pause.saved=explode", "is no order"),
            ("pause.saved=error*often", "is no order"),
            ("pause.saved=delay(1s)", "is no order"),
            ("#x=kill", "is no order"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("WRENN_FAILPOINTS: ") && error.contains(line), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert_eq!(parse(" ;\n; ").unwrap(), []);
    }

    #[test]
    fn a_file_is_read_anew_and_counts_begin_again_with_another_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders");
        let file = OrderFile { path: path.clone(), text: String::new(), orders: Vec::new() };
        let mut plan = Plan { file: Some(file), ..plan("") };
        assert_eq!(plan.due("pause.saved").unwrap(), None, "no file, no orders");
        fs::write(&path, "pause.saved=error*1").unwrap();
        assert_eq!(plan.due("pause.saved").unwrap(), Some(Action::Error));
        assert_eq!(plan.due("pause.saved").unwrap(), None);
        fs::write(&path, "pause.begun=error*1;pause.saved=error*1").unwrap();
        assert_eq!(plan.due("pause.saved").unwrap(), Some(Action::Error));
        fs::write(&path, "nonsense").unwrap();
        assert!(plan.due("pause.saved").is_err());
    }

    #[tokio::test]
    async fn off_they_are_passed_without_a_word() {
        assert!(!are_on());
        assert!(crate::failpoint!("pause.saved").await.is_ok());
        crate::failpoint!(sure "pause.recorded").await;
        assert!(crate::failpoint!(blocking "commit.synced").is_ok());
    }

    #[test]
    fn names_are_unique_and_each_is_passed_by_some_operation() {
        for (index, point) in POINTS.iter().enumerate() {
            assert!(!point.operations.is_empty(), "{}", point.name);
            assert!(POINTS[..index].iter().all(|other| other.name != point.name), "{}", point.name);
        }
    }
}
