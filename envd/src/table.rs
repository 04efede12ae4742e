//! All processes: the living, and the exited that are still remembered.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::selector::By;

use crate::launch::{Invalid, Launch, LaunchError, Surroundings};
use crate::process::{Process, Rules, StartError};

/// Exited processes that are remembered at most.
const REMEMBERED: usize = 64;
/// How long an exited process is remembered at most.
const MEMORY: Duration = Duration::from_secs(5 * 60);
/// What the output of exited processes may occupy, in bytes. Beyond it the oldest are forgotten, except
/// those whose reader may still be on its way back.
const REMEMBERED_OUTPUT: usize = 8 << 20;

/// All processes that can be named.
#[derive(Debug)]
pub struct Table {
    rules: Rules,
    /// Where the users are looked up.
    etc: PathBuf,
    /// In the order of their start.
    processes: Mutex<Vec<Arc<Process>>>,
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
        Self { rules, etc, processes: Mutex::new(Vec::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut processes = self.lock();
        let taken = |tag: &str| processes.iter().any(|it| it.tag == tag && it.running());
        let tag = if request.tag.is_empty() {
            random_tag(taken)
        } else if taken(&request.tag) {
            return Err(TableError::TagInUse(request.tag.clone()));
        } else {
            request.tag.clone()
        };
        let started = Process::start(request, launch, tag, self.rules)?;
        let result = attend(&started.process);
        processes.push(Arc::clone(&started.process));
        drop(processes);

        let table = Arc::clone(self);
        tokio::spawn(async move {
            started.supervision.run().await;
            table.trim();
            let process = Arc::downgrade(&started.process);
            drop(started.process);
            sleep(MEMORY).await;
            table.lock().retain(|it| !std::ptr::eq(Arc::as_ptr(it), process.as_ptr()));
        });
        Ok(result)
    }

    /// The process a selector names: a living one, or the last that exited.
    ///
    /// # Errors
    /// There is none, or the selector is empty.
    pub fn find(&self, selector: Option<&pb::Selector>) -> Result<Arc<Process>, TableError> {
        let by = selector.and_then(|it| it.by.as_ref()).ok_or(TableError::NoSelector)?;
        let processes = self.lock();
        let named = || {
            processes.iter().rev().filter(|it| match by {
                By::Pid(pid) => it.pid == *pid,
                By::Tag(tag) => it.tag == *tag,
            })
        };
        named().find(|it| it.running()).or_else(|| named().next()).cloned().ok_or_else(|| {
            TableError::NotFound(match by {
                By::Pid(pid) => format!("pid {pid}"),
                By::Tag(tag) => format!("tag `{}`", tag.escape_default()),
            })
        })
    }

    /// All of them, in the order of their start.
    pub fn list(&self) -> Vec<pb::Process> {
        self.lock().iter().map(|it| it.describe()).collect()
    }

    /// Forgets the exited processes that are too many or hold too much.
    fn trim(&self) {
        let mut processes = self.lock();
        let mut exited: Vec<_> = processes
            .iter()
            .filter_map(|it| Some((*it.exited_at.get()?, it.output.footprint(), Arc::as_ptr(it))))
            .collect();
        exited.sort_by_key(|&(at, ..)| std::cmp::Reverse(at));
        let settled = Instant::now().checked_sub(self.rules.reconnect_grace);
        let mut occupied = 0;
        let mut forgotten = Vec::new();
        for (index, (at, footprint, process)) in exited.into_iter().enumerate() {
            occupied += footprint;
            let too_much = occupied > REMEMBERED_OUTPUT && settled.is_some_and(|settled| at <= settled);
            if index >= REMEMBERED || too_much {
                occupied -= footprint;
                forgotten.push(process);
            }
        }
        processes.retain(|it| !forgotten.contains(&Arc::as_ptr(it)));
    }
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
