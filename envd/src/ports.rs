//! The `Ports` service: which TCP ports of the guest are open, and relays for those on loopback.
//!
//! ```text
//!              token fixed                       PrepareSnapshot
//!   dormant ──────────────▶ active: one scan a ──────────────────▶ resting: no relay
//!   (no timer, no relay)    second, relays  ◀──────────────────────
//!                                             PostRestore, or no snapshot came for a while
//! ```
//!
//! The scan goes on when nobody watches: a listener on loopback is to be reached without anybody having asked for the
//! list, and the kernel does not tell when one appears. It is the only thing that wakes an idle guest, once a second,
//! and reads two tables only as far as they list listeners. Nothing under `/proc/PID` is read unless a listener is
//! new.
//!
//! A relay holds its port on the guest's address. A program that then wants the port on every address has to wait
//! until the next scan has seen that its loopback listener is gone: a second at most.

pub mod known;
pub mod owners;
pub mod proc_net;
pub mod relay;
pub mod relays;
pub mod tick;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Request, Response, Status};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::port_event::Event;
use wrenn_proto::envd::v1::ports_server::Ports as PortsCalls;

use crate::ports::known::{Known, difference};
use crate::ports::proc_net::Listener;
use crate::ports::relay::Relay;
use crate::ports::relays::Relays;
use crate::ports::tick::Tick;
use crate::process::now_ns;

/// The guest's address, the same in every capsule.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// How often the tables are read.
const PERIOD: Duration = Duration::from_secs(1);
/// How long relays stay away when the snapshot they ended for does not come, counted from the end of its
/// preparation; the preparation itself may take as long as a sync does.
const SHORT_REST: Duration = Duration::from_secs(2);
const LONGEST_PREPARATION: Duration = Duration::from_secs(60);
/// Ports told of at most; the lowest ones.
const MOST_PORTS: usize = 1024;

/// The open ports of one guest.
#[derive(Debug)]
pub struct Ports {
    phase: Mutex<Phase>,
    changed: Notify,
    /// envd's own port; 0 until it serves.
    own: AtomicU16,
    known: watch::Sender<Arc<Known>>,
    relays: Mutex<Relays>,
    /// Held during a scan, so that one follows the other.
    scanning: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Dormant,
    Active,
    Resting { until: Instant },
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            phase: Mutex::new(Phase::Dormant),
            changed: Notify::new(),
            own: AtomicU16::new(0),
            known: watch::Sender::new(Arc::default()),
            relays: Mutex::new(Relays::new(GUEST_ADDRESS)),
            scanning: tokio::sync::Mutex::default(),
        }
    }
}

impl Ports {
    fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.changed.notify_one();
    }

    fn relays(&self) -> MutexGuard<'_, Relays> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to scan and to relay, or does so again at once.
    pub fn begin(&self) {
        self.enter(Phase::Active);
    }

    /// Ends all relays and their connections, because a snapshot is about to be taken. Returns when their sockets are
    /// closed.
    pub async fn rest(&self) {
        if self.phase() == Phase::Dormant {
            return;
        }
        self.enter(Phase::Resting { until: Instant::now() + LONGEST_PREPARATION });
        let relays = self.relays().take_all();
        end(relays).await;
    }

    /// All is prepared: if the snapshot is not taken shortly, relays start again.
    pub fn prepared(&self) {
        if self.phase() != Phase::Dormant {
            self.enter(Phase::Resting { until: Instant::now() + SHORT_REST });
        }
    }

    /// Ends what relays of an earlier life there may be; those of this one begin. Nobody has to wait for it.
    pub fn begin_anew(self: &Arc<Self>) {
        let ports = Arc::clone(self);
        tokio::spawn(async move {
            ports.rest().await;
            ports.begin();
        });
    }

    /// Scans for ever. `own` is the port that envd itself listens on.
    pub async fn run(self: Arc<Self>, own: u16) {
        self.own.store(own, Ordering::Relaxed);
        let tick = Tick::new().ok();
        let mut newborn = true;
        loop {
            let changed = self.changed.notified();
            match self.phase() {
                Phase::Dormant => changed.await,
                Phase::Resting { until } => tokio::select! {
                    () = sleep_until(until) => self.begin(),
                    () = changed => {}
                },
                Phase::Active => {
                    // A machine that has just been born has no ports, and better things to do.
                    if !std::mem::take(&mut newborn) {
                        self.scan().await;
                    }
                    tokio::select! {
                        () = pause(tick.as_ref()) => {}
                        () = changed => {}
                    }
                }
            }
        }
    }

    /// Compares what listens with what is known, and makes the relays that are needed before it says so.
    async fn scan(&self) {
        let _alone = self.scanning.lock().await;
        // What cannot be read has not changed.
        let Ok(listeners) = proc_net::listeners() else { return };
        let open = self.by_port(&listeners);
        let old = Arc::clone(&self.known.borrow());
        let names = names(&old, &open).await;
        let needless = self.relays().take_needless(&open);
        end(needless).await;
        {
            let mut relays = self.relays();
            if self.phase() == Phase::Active {
                relays.start_needed(&open);
            }
        }
        if let Some(new) = known::next(&old, &open, &names, now_ns()) {
            self.known.send_replace(Arc::new(new));
        }
    }

    /// The listeners that the host can reach, or could through a relay.
    fn by_port(&self, listeners: &[Listener]) -> BTreeMap<u16, Vec<Listener>> {
        let own = self.own.load(Ordering::Relaxed);
        let relays = self.relays();
        let reachable =
            |it: IpAddr| it.is_unspecified() || it.is_loopback() || it == IpAddr::V4(GUEST_ADDRESS);
        let mut ports: BTreeMap<u16, Vec<Listener>> = BTreeMap::new();
        for listener in listeners {
            if listener.port != own && reachable(listener.address) && !relays.own(listener.inode) {
                ports.entry(listener.port).or_default().push(*listener);
            }
        }
        while ports.len() > MOST_PORTS {
            ports.pop_last();
        }
        ports
    }

    /// What is open at this moment.
    async fn now(&self) -> watch::Receiver<Arc<Known>> {
        self.scan().await;
        self.known.subscribe()
    }
}

/// Waits until the next scan.
async fn pause(tick: Option<&Tick>) {
    if let Some(tick) = tick
        && tick.after(PERIOD).await.is_ok()
    {
        return;
    }
    // Without descriptors for a better one.
    sleep(PERIOD).await;
}

/// Returns when all their sockets are closed.
async fn end(relays: Vec<Relay>) {
    for relay in relays {
        relay.end().await;
    }
}

/// The names of those who listen on a port that was not open before.
async fn names(old: &Known, open: &BTreeMap<u16, Vec<Listener>>) -> HashMap<u64, String> {
    let new = open.iter().filter(|(port, listeners)| !known::goes_on(old, **port, listeners));
    let wanted: HashSet<u64> = new.flat_map(|(_, listeners)| listeners.iter().map(|it| it.inode)).collect();
    if wanted.is_empty() {
        return HashMap::new();
    }
    let walk = move || owners::owners(&wanted);
    // Without names, then.
    tokio::task::spawn_blocking(walk).await.unwrap_or_default()
}

/// The service over the ports of one guest.
#[derive(Debug, Clone)]
pub struct PortsService {
    pub ports: Arc<Ports>,
}

#[tonic::async_trait]
impl PortsCalls for PortsService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::PortEvent, Status>> + Send>>;

    async fn list(
        &self,
        _request: Request<pb::ListPortsRequest>,
    ) -> Result<Response<pb::ListPortsResponse>, Status> {
        let now = self.ports.now().await;
        let ports = now.borrow().values().map(|it| it.port.clone()).collect();
        Ok(Response::new(pb::ListPortsResponse { ports }))
    }

    async fn watch(
        &self,
        _request: Request<pb::WatchPortsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            now: self.ports.now().await,
            told: Arc::default(),
            waiting: VecDeque::new(),
            synced: false,
        };
        Ok(Response::new(Box::pin(watcher.into_stream())))
    }
}

/// A reader of the changes. One that is slow is told the difference that is left when it asks again.
struct Watcher {
    now: watch::Receiver<Arc<Known>>,
    told: Arc<Known>,
    waiting: VecDeque<Event>,
    synced: bool,
}

impl Watcher {
    fn into_stream(self) -> impl Stream<Item = Result<pb::PortEvent, Status>> + Send + 'static {
        futures_util::stream::unfold(self, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((Ok(pb::PortEvent { event: Some(event) }), watcher))
        })
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.synced {
                // Fails only when the daemon is gone.
                self.now.changed().await.ok()?;
            }
            let now = Arc::clone(&self.now.borrow_and_update());
            self.waiting.extend(difference(&self.told, &now));
            self.told = now;
            if !self.synced {
                self.synced = true;
                self.waiting.push_back(Event::Synced(pb::PortsSynced {}));
            }
        }
    }
}
