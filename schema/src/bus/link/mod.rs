//! The bus of several replicas: what one commits, the hubs of the others hear over a channel of Redis.
//!
//! Redis keeps nothing of it, and may lose anything. What was lost is noticed by the numbers that every message carries
//! and every [heartbeat](Pace::heartbeat) repeats; a connection that is lost by its end, or by this replica's own
//! heartbeats not coming back; a replica that cannot speak by its silence. Each is answered alike: everybody who listens
//! looks at the database again, once, or regularly for as long as it lasts.

mod listen;
mod peers;
mod talk;
mod wire;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::RedisError;
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::{listen::Listener, peers::Peers, talk::Talker};
use super::{Bus, Change, Subscriber, Topic, hub::Hub};

/// Changes that may wait for Redis before they are left out.
const WAITING: usize = 4096;

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
#[error("the address of Redis is not usable")]
pub struct BusError(#[source] RedisError);

/// How often, and how long, things are done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two signs of life.
    pub(super) heartbeat: Duration,
    /// Without a sign of life for so long, a replica is not heard.
    pub(super) silence: Duration,
    /// Between two looks at how things are.
    pub(super) look: Duration,
    /// Between two looks at the database while something is not heard.
    pub(super) refresh: Duration,
    /// After so long a silence a replica is taken for dead. By then the reconcilers of the others have settled what it had
    /// begun.
    pub(super) forget: Duration,
    /// Between two tries to reach Redis.
    pub(super) retry: Duration,
    /// What Redis has for an answer.
    pub(super) patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            silence: Duration::from_secs(4),
            look: Duration::from_millis(200),
            refresh: Duration::from_secs(5),
            forget: Duration::from_secs(120),
            retry: Duration::from_millis(250),
            patience: Duration::from_secs(3),
        }
    }
}

/// Where the replicas meet.
pub(super) struct Ends {
    client: redis::Client,
    channel: String,
}

/// The bus of one of several replicas.
pub(crate) struct RedisBus {
    pub(super) hub: Arc<Hub>,
    changes: mpsc::Sender<Change>,
    /// Changes that found no room in the queue and were not counted yet.
    pub(super) dropped: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisBus")
    }
}

impl RedisBus {
    /// Goes on whether Redis is there or not. `installation` is what this installation's replicas have in common.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn start(url: &SecretString, installation: &str) -> Result<Self, BusError> {
        Self::at(url, installation, Pace::default())
    }

    pub(super) fn at(url: &SecretString, installation: &str, pace: Pace) -> Result<Self, BusError> {
        let client = redis::Client::open(url.expose_secret()).map_err(BusError)?;
        let ends = Arc::new(Ends { client, channel: format!("wrenn:{installation}:changes") });
        let (hub, me) = (Arc::<Hub>::default(), Uuid::now_v7());
        let (sender, changes) = mpsc::channel(WAITING);
        let dropped = Arc::<AtomicU64>::default();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let talker = Talker {
            ends: ends.clone(),
            pace,
            me,
            changes,
            dropped: dropped.clone(),
            told: 0,
            complained: false,
        };
        tasks.spawn(talker.run(stop.clone()));
        let peers = Peers::new(pace.silence, pace.forget);
        let refreshed = Instant::now();
        let listener = Listener { ends, pace, me, hub: hub.clone(), peers, refreshed, complained: false };
        tasks.spawn(listener.run(stop.clone()));
        tasks.close();
        Ok(Self { hub, changes: sender, dropped, stop, tasks })
    }
}

#[async_trait::async_trait]
impl Bus for RedisBus {
    fn publish(&self, change: Change) {
        // Those in this process are told at once, whatever Redis does.
        self.hub.send(&change);
        if self.changes.try_send(change).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn subscribe(&self, topic: Topic) -> Subscriber {
        self.hub.subscribe(topic)
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
