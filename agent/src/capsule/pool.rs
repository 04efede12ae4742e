//! Capsules ahead of need: restored, exercised once, and stopped, until somebody wants one.
//!
//! ```text
//!            made: restored, rehearsed, vCPUs stopped
//!  (nothing) ────────────────────────────────────────▶ ready ──taken──▶ vCPUs run, entropy, clock,
//!      ▲                                                 │              identity, token ──▶ a capsule
//!      │       its VMM ended, room is short, its golden  │                  │
//!      └─────  snapshot is gone, the agent stops  ◀──────┘                  │ failed: taken apart, and the
//!                                                                           ▼ capsule restored as usual
//! ```
//! A member belongs to nobody: its token and its identity were made for it alone and are replaced when it is taken,
//! before anyone is served from it. It has no record, so that the next agent ends it as it ends all strays.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wrenn_proto::envd::v1 as envd;
use wrenn_vmm::disk::DiskView;
use wrenn_vmm::driver::MemorySharing;
use wrenn_vmm::failpoint;
use wrenn_vmm::network::EgressPolicy;
use wrenn_vmm::paths::CapsulePaths;
use wrenn_vmm::snapshot::Snapshot;

use super::engine::Engine;
use super::error::{CapsuleError, Teardown};
use super::handover::Handover;
use super::launch::{Launch, restrict};
use super::parts::RunningCapsule;
use super::spec::{CapsuleSpec, name};
use super::steps::Steps;
use crate::host;
use crate::ids::CapsuleId;
use crate::request_id::RequestId;
use crate::token::Token;

/// Golden snapshots that members are kept of: those used last.
const MOST_GOLDENS: usize = 4;
/// Members are made once nothing was started for this long: what was started last still wants the CPUs.
const QUIET: Duration = Duration::from_millis(500);
/// How often members and the host's memory are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// After a member could not be made.
const RETRY: Duration = Duration::from_secs(30);
/// Members go once less than one part in so many of the host's memory is available.
const SHORT_OF_MEMORY: u64 = 10;

/// The members of this host.
pub struct WarmPool {
    /// Of each golden snapshot.
    size: usize,
    shelves: Mutex<Shelves>,
    /// Capsules that are being started.
    starting: AtomicUsize,
    changed: Notify,
}

#[derive(Default)]
struct Shelves {
    /// The least recently used first.
    shelves: VecDeque<Shelf>,
    /// To be taken apart.
    discarded: Vec<Member>,
    quiet_since: Option<Instant>,
    closing: bool,
}

/// The members of one golden snapshot.
struct Shelf {
    golden: Arc<Snapshot>,
    /// Whose template it is.
    of: CapsuleSpec,
    members: Vec<Member>,
    not_before: Option<Instant>,
}

/// A machine that waits with its vCPUs stopped.
pub struct Member {
    running: Box<RunningCapsule>,
}

/// A capsule is being started for as long as it lives.
pub struct Starting<'a>(&'a WarmPool);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if self.0.starting.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.shelves().quiet_since = Some(Instant::now());
            self.0.changed.notify_one();
        }
    }
}

/// What is to be done next.
enum Task {
    Discard(Vec<Member>),
    Make { golden: Arc<Snapshot>, of: Box<CapsuleSpec> },
    Rest(Duration),
    Close,
}

impl WarmPool {
    /// `size`: members of each golden snapshot; none at all with 0.
    pub fn new(size: usize) -> Self {
        Self { size, shelves: Mutex::default(), starting: AtomicUsize::new(0), changed: Notify::new() }
    }

    /// While the guard lives no members are made.
    pub fn starting(&self) -> Starting<'_> {
        self.starting.fetch_add(1, Ordering::Relaxed);
        Starting(self)
    }

    /// A member of this golden snapshot, if there is one; more will be made of it in any case.
    pub fn take(&self, golden: &Arc<Snapshot>, spec: &CapsuleSpec) -> Option<Member> {
        if self.size == 0 {
            return None;
        }
        let mut shelves = self.shelves();
        if shelves.closing {
            return None;
        }
        let here = shelves.shelves.iter().position(|shelf| shelf.golden.directory() == golden.directory());
        let shelf = here.and_then(|at| shelves.shelves.remove(at));
        let mut shelf = shelf.unwrap_or_else(|| Shelf {
            golden: golden.clone(),
            of: spec.clone(),
            members: Vec::new(),
            not_before: None,
        });
        let member = loop {
            match shelf.members.pop() {
                Some(dead) if dead.has_ended() => shelves.discarded.push(dead),
                other => break other,
            }
        };
        shelves.shelves.push_back(shelf);
        while shelves.shelves.len() > MOST_GOLDENS {
            let oldest = shelves.shelves.pop_front();
            shelves.discarded.extend(oldest.into_iter().flat_map(|shelf| shelf.members));
        }
        shelves.count();
        drop(shelves);
        self.changed.notify_one();
        member
    }

    /// The member that is most easily done without, for the caller to take apart.
    pub fn give_up(&self) -> Option<Member> {
        let mut shelves = self.shelves();
        let member = shelves.shelves.iter_mut().find_map(|shelf| {
            // Nor is another one made in its place at once.
            shelf.not_before = Some(Instant::now() + RETRY);
            shelf.members.pop()
        });
        shelves.count();
        member
    }

    /// Lets go of the members of all golden snapshots in this directory.
    pub fn forget(&self, directory: &Path) {
        let mut shelves = self.shelves();
        let (gone, kept) = std::mem::take(&mut shelves.shelves)
            .into_iter()
            .partition::<VecDeque<_>, _>(|shelf| shelf.golden.directory().starts_with(directory));
        shelves.shelves = kept;
        shelves.discarded.extend(gone.into_iter().flat_map(|shelf| shelf.members));
        shelves.count();
        drop(shelves);
        self.changed.notify_one();
    }

    /// Keeps the pool full until it is closed, and takes it apart then.
    pub async fn tend(engine: Arc<Engine>) {
        let pool = &engine.pool;
        loop {
            match pool.next_task() {
                Task::Discard(members) => {
                    for member in members {
                        member.discard(&engine).await;
                    }
                }
                Task::Make { golden, of } => pool.add(&engine, &golden, &of).await,
                Task::Rest(within) => {
                    // What changed since is not missed: the permit of a notification is kept.
                    let _passed = tokio::time::timeout(within, pool.changed.notified()).await;
                }
                Task::Close => return,
            }
        }
    }

    /// No member is made or taken any more; [`tend`](Self::tend) ends once the last is taken apart.
    pub fn close(&self) {
        self.shelves().closing = true;
        self.changed.notify_one();
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_task(&self) -> Task {
        let mut shelves = self.shelves();
        shelves.sort_out(is_short_of_memory());
        if !shelves.discarded.is_empty() {
            return Task::Discard(std::mem::take(&mut shelves.discarded));
        }
        if shelves.closing {
            return Task::Close;
        }
        if self.starting.load(Ordering::Relaxed) > 0 {
            return Task::Rest(PERIOD);
        }
        let now = Instant::now();
        let quiet_at = shelves.quiet_since.map_or(now, |since| since + QUIET);
        if quiet_at > now {
            return Task::Rest(quiet_at - now);
        }
        // What was used last is wanted next.
        let wanting = shelves.shelves.iter().rev().find(|shelf| {
            shelf.members.len() < self.size && shelf.not_before.is_none_or(|until| until <= now)
        });
        match wanting {
            Some(shelf) => Task::Make { golden: shelf.golden.clone(), of: shelf.of.clone().into() },
            None => Task::Rest(PERIOD),
        }
    }

    async fn add(&self, engine: &Arc<Engine>, golden: &Arc<Snapshot>, of: &CapsuleSpec) {
        let made = Member::make(engine, golden, of).await;
        match &made {
            Ok(_) => {}
            // It is nobody's loss.
            Err(CapsuleError::Exhausted { .. }) => tracing::debug!("no room for a capsule made ahead"),
            Err(error) => tracing::warn!(error = %crate::report(error), "no capsule was made ahead"),
        }
        let mut shelves = self.shelves();
        let at = shelves.shelves.iter().position(|shelf| shelf.golden.directory() == golden.directory());
        match (at, made) {
            (Some(at), Ok(member)) => shelves.shelves[at].members.push(member),
            // Its template was deleted while a capsule was still made of it: nobody will ask for it again.
            (Some(at), Err(_)) if !golden.directory().is_dir() => {
                let gone = shelves.shelves.remove(at);
                shelves.discarded.extend(gone.into_iter().flat_map(|shelf| shelf.members));
            }
            (Some(at), Err(_)) => shelves.shelves[at].not_before = Some(Instant::now() + RETRY),
            // Nobody wants it any more.
            (None, Ok(member)) => shelves.discarded.push(member),
            (None, Err(_)) => {}
        }
        shelves.count();
    }
}

impl Shelves {
    /// Puts away what cannot be used, or shall not be.
    fn sort_out(&mut self, short_of_memory: bool) {
        let closing = self.closing;
        for shelf in &mut self.shelves {
            let unusable = |member: &mut Member| closing || member.has_ended();
            self.discarded.extend(shelf.members.extract_if(.., unusable));
            if short_of_memory {
                shelf.not_before = Some(Instant::now() + RETRY);
                self.discarded.append(&mut shelf.members);
            }
        }
        self.count();
    }

    fn count(&self) {
        let members: usize = self.shelves.iter().map(|shelf| shelf.members.len()).sum();
        metrics::gauge!("wrenn_warm_pool_members").set(members as f64);
    }
}

fn is_short_of_memory() -> bool {
    let memory = host::memory();
    memory.available_mib < memory.total_mib / SHORT_OF_MEMORY
}

impl Member {
    async fn make(
        engine: &Arc<Engine>,
        golden: &Arc<Snapshot>,
        of: &CapsuleSpec,
    ) -> Result<Self, CapsuleError> {
        // A capsule still finds room and a slot beside it.
        let _room = engine.admission.admit(2, of.memory_mib, 0)?;
        if engine.slots.free() < 2 {
            return Err(CapsuleError::Exhausted {
                resource: "network slots",
                wanted: "2".into(),
                free: engine.slots.free().to_string(),
            });
        }
        let mut steps = Steps::start("pool");
        let home = engine.paths.capsule(&name(format!("pool-{}", uuid::Uuid::now_v7().simple())));
        let made = async {
            home.create().map_err(CapsuleError::step("making a pool member's directories"))?;
            let mut running = begin(engine, golden, of, &home, &mut steps).await?;
            rehearse(&running).await;
            steps.done("rehearse");
            match running.machine.stop_vcpus().await {
                Ok(()) => Ok(Self { running: running.into() }),
                Err(error) => {
                    Self { running: running.into() }.discard(engine).await;
                    Err(CapsuleError::step("stopping the vCPUs")(error))
                }
            }
        };
        match made.await {
            Ok(member) => {
                steps.finish();
                Ok(member)
            }
            Err(error) => {
                if let Err(left) = home.remove() {
                    tracing::error!(error = %left, "a pool member left something behind");
                }
                steps.fail(&error);
                Err(error)
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.running.machine.process().has_exited().is_some()
    }

    /// Makes it the capsule of this spec, in this home. On error nothing is left of it.
    pub async fn hand_over(
        self,
        handover: &Handover<'_>,
        home: &CapsulePaths,
    ) -> Result<RunningCapsule, CapsuleError> {
        let engine = handover.engine;
        let mut running = self.running;
        match become_capsule(&mut running, handover, home).await {
            Ok(()) => Ok(*running),
            Err(error) => {
                Self { running }.dismantle(engine, Some(home)).await;
                // It may have moved in part of the way.
                if let Err(left) = home.clear() {
                    tracing::error!(error = %left, "a pool member left something behind");
                }
                Err(error)
            }
        }
    }

    /// Takes it apart.
    pub async fn discard(self, engine: &Engine) {
        self.dismantle(engine, None).await;
    }

    /// `keep`: the home of a capsule, which may be its home by now.
    async fn dismantle(self, engine: &Engine, keep: Option<&CapsulePaths>) {
        let home = self.running.home.clone();
        let mut teardown = Teardown::default();
        teardown.merge(self.running.into_parts().dismantle(engine).await);
        if Some(&home) != keep {
            teardown.note("removing its directories", home.remove());
        }
        if let Err(error) = teardown.finish() {
            tracing::error!(%error, "a pool member left something behind");
        }
    }
}

async fn become_capsule(
    running: &mut RunningCapsule,
    handover: &Handover<'_>,
    home: &CapsulePaths,
) -> Result<(), CapsuleError> {
    let engine = handover.engine;
    running.home.move_into(home).map_err(CapsuleError::step("moving a pool member"))?;
    running.machine.set_home(home.clone());
    running.home = home.clone();
    failpoint!("pool.moved").await.map_err(CapsuleError::step("moving a pool member"))?;
    let disk = engine.disks.attach(&DiskView { path: home.disk() }).await;
    running.disk = disk.map_err(CapsuleError::step("attaching the disk"))?;
    failpoint!("pool.attached").await.map_err(CapsuleError::step("attaching the disk"))?;
    // Before the guest runs, so that nothing of it comes out that should not.
    restrict(engine, &mut running.slot, handover.spec).await?;
    failpoint!("pool.restricted").await.map_err(CapsuleError::step("applying the egress policy"))?;
    running.machine.resume_vcpus().await.map_err(CapsuleError::step("letting the vCPUs run"))?;
    failpoint!("pool.resumed").await.map_err(CapsuleError::step("letting the vCPUs run"))?;
    let deadline = Instant::now() + engine.grace;
    let guest = running.handle.guest.clone();
    let guest = handover.run(guest, running.machine.as_ref(), deadline).await?;
    failpoint!("pool.handed-over").await.map_err(CapsuleError::step("handing the guest its identity"))?;
    running.begin_life(guest);
    Ok(())
}

/// A life that belongs to nobody.
async fn begin(
    engine: &Engine,
    golden: &Snapshot,
    of: &CapsuleSpec,
    home: &CapsulePaths,
    steps: &mut Steps,
) -> Result<RunningCapsule, CapsuleError> {
    let token = Token::generate().map_err(CapsuleError::step("making a token"))?;
    let launch = Launch {
        engine,
        spec: &of_nobody(of),
        home,
        token: &token,
        known: None,
        snapshot: golden,
        sharing: MemorySharing::Shared,
        rehearse: true,
        cancelled: &CancellationToken::new(),
        request: &RequestId::new(),
    };
    launch.run(steps).await
}

/// Of the same size and length of names, and with nothing of anybody's.
fn of_nobody(of: &CapsuleSpec) -> CapsuleSpec {
    CapsuleSpec {
        id: CapsuleId::from_u128(0),
        env: Vec::new(),
        secret_env: Vec::new(),
        default_user: String::new(),
        egress: EgressPolicy::default(),
        ..of.clone()
    }
}

/// Goes the way of the first command of every capsule, as far as can be gone without leaving a trace of it.
async fn rehearse(running: &RunningCapsule) {
    let guest = &running.handle.guest;
    let nothing = envd::StartRequest { argv: vec!["/nonexistent".into()], ..Default::default() };
    let refused = guest.processes().exec(guest.request(nothing, &RequestId::new())).await;
    tracing::debug!(refused = refused.is_err(), "rehearsed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_nothing_of_whom_it_was_made_for() {
        let var = super::super::spec::EnvVar { name: "KEY".into(), value: "secret".into() };
        let team = crate::ids::TeamId::from_u128(2);
        let of = CapsuleSpec {
            id: CapsuleId::from_u128(7),
            team,
            template: crate::ids::TemplateId::from_u128(3),
            template_team: team,
            vcpus: 1,
            memory_mib: 256,
            disk_mib: 1024,
            env: vec![var],
            secret_env: vec!["KEY".into()],
            default_user: "worker".into(),
            egress: EgressPolicy::new(true, &["*.example.com"], &[] as &[&str]).unwrap(),
            from_snapshot: false,
            parent: None,
        };
        let nobody = of_nobody(&of);
        assert_ne!(nobody.id, of.id);
        assert!(nobody.env.is_empty() && nobody.secret_env.is_empty() && nobody.default_user.is_empty());
        assert_eq!(nobody.egress, EgressPolicy::default());
        assert_eq!(nobody.id.to_string().len(), of.id.to_string().len());
        assert_eq!((nobody.template, nobody.memory_mib), (of.template, of.memory_mib));
    }

    #[test]
    fn nothing_is_made_while_capsules_are_started() {
        let pool = WarmPool::new(1);
        let one = pool.starting();
        let other = pool.starting();
        drop(one);
        assert!(pool.shelves().quiet_since.is_none());
        drop(other);
        assert!(pool.shelves().quiet_since.is_some());
    }

    #[test]
    fn a_closed_pool_without_members_is_done() {
        let pool = WarmPool::new(1);
        assert!(matches!(pool.next_task(), Task::Rest(_)));
        pool.close();
        assert!(matches!(pool.next_task(), Task::Close));
    }
}
