//! All processes: the living, and the exited that are still remembered.
//!
//! ```text
//!   running ──▶ exited ── LISTED others exit later ──▶ its trail ── and TRAILS more ──▶ forgotten
//!                  └──────────── MEMORY is over ───────────┴──────────────────────────────▲
//! ```
//! Who lost the answer to a start follows its tag before the command is run again. So a process that is not listed any
//! more can still be followed: to its end, and with what is left of its output.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::selector::By;

use crate::launch::{Invalid, Launch, LaunchError, Surroundings};
use crate::process::{Process, Rules, StartError, Trail};

/// Exited processes that are listed at most.
const LISTED: usize = 64;
/// Those that exited before, of which only the trail is left, at most. Each takes about 0.8 KiB.
const TRAILS: usize = 1024;
/// How long an exited process is remembered at most.
const MEMORY: Duration = Duration::from_secs(5 * 60);

/// All processes that can be named.
#[derive(Debug)]
pub struct Table {
    rules: Rules,
    /// Where the users are looked up.
    etc: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// In the order of their start.
    processes: Vec<Arc<Process>>,
    /// What is left of others, with the time of their exit.
    trails: VecDeque<(Instant, Trail)>,
    /// A task waits for the time of those that have exited.
    awaited: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("a running process already has the tag `{0}`")]
    TagInUse(String),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("no process with {0}")]
    NotFound(String),
    #[error("no process named")]
    NoSelector,
}

impl Table {
    pub fn new(rules: Rules, etc: PathBuf) -> Self {
        Self { rules, etc, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process. `attend` sees it before anything of it can have been lost.
    ///
    /// # Errors
    /// Nothing was started.
    pub fn start<T>(
        self: &Arc<Self>,
        request: &pb::StartRequest,
        surroundings: &Surroundings,
        attend: impl FnOnce(&Arc<Process>) -> T,
    ) -> Result<T, TableError> {
        check_tag(&request.tag).map_err(|error| StartError::from(LaunchError::from(error)))?;
        let launch = Launch::prepare(request, surroundings, &self.etc).map_err(StartError::from)?;

        // Held to the end, so that of two requests with one tag the second finds the first.
        let mut known = self.lock();
        let taken = |tag: &str| known.processes.iter().any(|it| it.tag == tag && it.running());
        let tag = if request.tag.is_empty() {
            random_tag(taken)
        } else if taken(&request.tag) {
            return Err(TableError::TagInUse(request.tag.clone()));
        } else {
            request.tag.clone()
        };
        let started = Process::start(request, launch, tag, &self.rules)?;
        let result = attend(&started.process);
        known.processes.push(started.process);
        drop(known);

        let table = Arc::clone(self);
        tokio::spawn(async move {
            started.supervision.run().await;
            table.exited();
        });
        Ok(result)
    }

    /// The process a selector names: a living one, or the last that exited.
    ///
    /// # Errors
    /// There is none, or the selector is empty.
    pub fn find(&self, selector: Option<&pb::Selector>) -> Result<Arc<Process>, TableError> {
        let by = named_by(selector)?;
        self.lock().process(by).ok_or_else(|| not_found(by))
    }

    /// The trail of the process a selector names, also of one that is not listed any more.
    ///
    /// # Errors
    /// There is none, or the selector is empty.
    pub fn trail(&self, selector: Option<&pb::Selector>) -> Result<Trail, TableError> {
        let by = named_by(selector)?;
        let known = self.lock();
        let listed = known.process(by).map(|it| it.trail());
        let left = || {
            let mut trails = known.trails.iter().rev().map(|(_, it)| it);
            trails.find(|it| is_named(by, it.pid, &it.tag)).cloned()
        };
        listed.or_else(left).ok_or_else(|| not_found(by))
    }

    /// All of them, in the order of their start.
    pub fn list(&self) -> Vec<pb::Process> {
        self.lock().processes.iter().map(|it| it.describe()).collect()
    }

    fn exited(self: &Arc<Self>) {
        let mut known = self.lock();
        known.tidy(Instant::now());
        if !std::mem::replace(&mut known.awaited, true) {
            tokio::spawn(Arc::clone(self).forget());
        }
    }

    /// Forgets each that has exited when its time comes, until there is none.
    async fn forget(self: Arc<Self>) {
        loop {
            let due = {
                let mut known = self.lock();
                let due = known.tidy(Instant::now());
                known.awaited = due.is_some();
                due
            };
            let Some(due) = due else { return };
            sleep_until(due).await;
        }
    }
}

impl Known {
    fn process(&self, by: &By) -> Option<Arc<Process>> {
        let named = || self.processes.iter().rev().filter(|it| is_named(by, it.pid, &it.tag));
        named().find(|it| it.running()).or_else(|| named().next()).cloned()
    }

    /// Leaves the trail of those that are too many, forgets those whose time has come, and returns the next such time.
    fn tidy(&mut self, now: Instant) -> Option<Instant> {
        let due = |exit: Instant| exit + MEMORY <= now;
        while let Some((exit, process)) = self.surplus() {
            self.processes.retain(|it| !Arc::ptr_eq(it, &process));
            self.trails.push_back((exit, process.trail()));
        }
        self.processes.retain(|it| !it.exited_at.get().is_some_and(|&exit| due(exit)));
        let too_many = self.trails.len().saturating_sub(TRAILS);
        self.trails.drain(..too_many);
        self.trails.retain(|&(exit, _)| !due(exit));
        let trails = self.trails.iter().map(|&(exit, _)| exit);
        self.exits().map(|(exit, _)| exit).chain(trails).min().map(|exit| exit + MEMORY)
    }

    fn exits(&self) -> impl Iterator<Item = (Instant, &Arc<Process>)> {
        self.processes.iter().filter_map(|it| Some((*it.exited_at.get()?, it)))
    }

    /// The first that exited, if more have than are listed.
    fn surplus(&self) -> Option<(Instant, Arc<Process>)> {
        let first = self.exits().min_by_key(|&(exit, _)| exit).filter(|_| self.exits().count() > LISTED);
        first.map(|(exit, process)| (exit, Arc::clone(process)))
    }
}

fn named_by(selector: Option<&pb::Selector>) -> Result<&By, TableError> {
    selector.and_then(|it| it.by.as_ref()).ok_or(TableError::NoSelector)
}

fn is_named(by: &By, of: u32, called: &str) -> bool {
    match by {
        By::Pid(pid) => *pid == of,
        By::Tag(tag) => tag == called,
    }
}

fn not_found(by: &By) -> TableError {
    TableError::NotFound(match by {
        By::Pid(pid) => format!("pid {pid}"),
        By::Tag(tag) => format!("tag `{}`", tag.escape_default()),
    })
}

/// A letter, then letters, digits, `.`, `_` and `-`; 63 characters at most. Never mistaken for a pid.
fn check_tag(tag: &str) -> Result<(), Invalid> {
    let mut bytes = tag.bytes();
    let fits = tag.len() <= 63
        && bytes.next().is_none_or(|it| it.is_ascii_alphabetic())
        && bytes.all(|it| it.is_ascii_alphanumeric() || b"._-".contains(&it));
    if fits {
        return Ok(());
    }
    let rule = "a tag is a letter, then up to 62 letters, digits, `.`, `_` or `-`";
    Err(Invalid { field: "tag", message: rule.to_owned() })
}

fn random_tag(taken: impl Fn(&str) -> bool) -> String {
    loop {
        // Differs with every call, which is all that is needed: a tag is unique, not secret.
        let number = RandomState::new().build_hasher().finish();
        let tag = format!("proc-{:08x}", number & 0xffff_ffff);
        if !taken(&tag) {
            return tag;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for good in ["", "a", "Web-1.2_x", &"a".repeat(63)] {
            assert!(check_tag(good).is_ok(), "{good}");
        }
        for bad in ["1", "1a", "-a", ".a", "a b", "ä", "a/b", &"a".repeat(64)] {
            assert!(check_tag(bad).is_err(), "{bad}");
        }
    }
}
