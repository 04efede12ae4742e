//! Holds a stream of changes open to every online host, so that the database learns at once what happens there.
//!
//! An event is only a hint that something changed: the row is read, and if the two do not agree the host is asked again
//! before anything is written. So an event that is late, or told twice, does no harm.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wrenn_entities::{
    CapsuleId, HostId, capsule,
    host::{self, HostStatus},
};
use wrenn_proto::agent::v1::{self as agent, capsule_event::Event};

use super::{
    Job,
    reconciler::{present, surplus},
};
use crate::{
    Error, Services,
    access::RequestId,
    capsule::{
        settle::{Verdict, ask, settle, verdict},
        state::is_held,
    },
    host::{answer, requested},
};

/// How long a host may take to open its stream.
const OPEN: Duration = Duration::from_secs(10);
/// After this long a broken stream is opened again at the latest.
const RETRY: Duration = Duration::from_secs(1);
/// Capsules that an operation held when they changed are looked at again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct HostWatch {
    services: Arc<Services>,
    watched: Mutex<HashMap<HostId, CancellationToken>>,
    watchers: TaskTracker,
}

impl HostWatch {
    pub(super) fn new(services: Arc<Services>) -> Self {
        Self { services, watched: Mutex::default(), watchers: TaskTracker::new() }
    }

    fn watch_exactly(&self, online: &HashSet<HostId>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|host, stop| {
            let stays = online.contains(host) && !stop.is_cancelled();
            if !stays {
                stop.cancel();
            }
            stays
        });
        for host in online {
            watched.entry(*host).or_insert_with(|| {
                let stop = CancellationToken::new();
                // Also cancelled when the watcher ends by itself, by a panic: the next round begins another.
                let ended = stop.clone().drop_guard();
                let watcher = keep_watching(self.services.clone(), *host, stop.clone());
                self.watchers.spawn(async move {
                    watcher.await;
                    drop(ended);
                });
                stop
            });
        }
    }
}

#[async_trait::async_trait]
impl Job for HostWatch {
    fn name(&self) -> &'static str {
        "host-watch"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn woken(&self) {
        self.services.hosts_changed.notified().await;
    }

    async fn activate(&self, _: &CancellationToken) -> Result<(), Error> {
        let online = host::Entity::find()
            .filter(host::Column::Status.eq(HostStatus::Online))
            .all(&self.services.db)
            .await?;
        self.watch_exactly(&online.into_iter().map(|host| host.id).collect());
        Ok(())
    }

    async fn finish(&self) {
        self.watch_exactly(&HashSet::new());
        self.watchers.close();
        self.watchers.wait().await;
    }
}

async fn keep_watching(services: Arc<Services>, host: HostId, stop: CancellationToken) {
    let mut pause = Duration::from_millis(50);
    while !stop.is_cancelled() {
        let began = Instant::now();
        match stop.run_until_cancelled(watch(&services, host)).await {
            Some(Err(error)) => {
                tracing::info!(%host, error = %error.chain(), "a host's stream of changes broke");
            }
            Some(Ok(())) => tracing::debug!(%host, "a host ended its stream of changes"),
            None => break,
        }
        pause = if began.elapsed() > RETRY { Duration::from_millis(50) } else { (pause * 2).min(RETRY) };
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

/// One life of one stream.
async fn watch(services: &Services, host: HostId) -> Result<(), Error> {
    let request_id = RequestId(format!("watch-{host}"));
    let mut client = services.hosts.get(host).await?;
    let request = requested(agent::WatchCapsulesRequest {}, &request_id);
    let mut stream = answer("WatchCapsules", OPEN, client.watch_capsules(request)).await?;
    let mut later: HashSet<CapsuleId> = HashSet::new();
    let mut look_again = interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // While the host tells all it has, what was told; afterwards `None`.
    let mut telling: Option<HashMap<String, agent::Capsule>> = Some(HashMap::new());
    loop {
        let event = tokio::select! {
            message = stream.message() => match message.map_err(|status| Error::from_agent("WatchCapsules", status))? {
                Some(event) => event.event,
                None => return Ok(()),
            },
            _ = look_again.tick() => {
                for id in std::mem::take(&mut later) {
                    if examine(services, host, id, None).await? == Examined::Held {
                        later.insert(id);
                    }
                }
                continue;
            }
        };
        match (event, &mut telling) {
            (Some(Event::Capsule(capsule)), Some(told)) => {
                told.insert(capsule.id.clone(), capsule);
            }
            (Some(Event::Capsule(capsule)), None) => {
                if let Ok(id) = capsule.id.parse()
                    && examine(services, host, id, Some(&capsule)).await? == Examined::Held
                {
                    later.insert(id);
                }
            }
            (Some(Event::Synced(_)), telling) => {
                let told = telling.take().unwrap_or_default();
                later.extend(synced(services, host, &told).await?);
            }
            (Some(Event::Resync(_)), telling) => *telling = Some(HashMap::new()),
            (None, _) => {}
        }
    }
}

/// The host has told all it has: whatever does not agree is examined. Returns what is held at the moment.
async fn synced(
    services: &Services,
    host: HostId,
    told: &HashMap<String, agent::Capsule>,
) -> Result<Vec<CapsuleId>, Error> {
    let rows = present(services, host).await?;
    let mut held = Vec::new();
    let mut known = HashSet::new();
    for row in &rows {
        let id = row.id.to_string();
        if is_held(row) {
            held.push(row.id);
        } else if verdict(row, told.get(&id)) != Verdict::Agree {
            examine(services, host, row.id, told.get(&id)).await?;
        }
        known.insert(id);
    }
    for capsule in told.values().filter(|capsule| !known.contains(&capsule.id)) {
        surplus(services, host, capsule).await?;
    }
    Ok(held)
}

#[derive(Debug, PartialEq, Eq)]
enum Examined {
    Done,
    /// An operation is under way; to be looked at again.
    Held,
}

/// Looks at one capsule after a hint that it changed.
async fn examine(
    services: &Services,
    host: HostId,
    id: CapsuleId,
    hint: Option<&agent::Capsule>,
) -> Result<Examined, Error> {
    let row =
        capsule::Entity::find_by_id(id).filter(capsule::Column::HostId.eq(host)).one(&services.db).await?;
    let Some(row) = row else { return Ok(Examined::Done) };
    if is_held(&row) {
        return Ok(Examined::Held);
    }
    if hint.is_some_and(|hint| verdict(&row, Some(hint)) == Verdict::Agree) {
        return Ok(Examined::Done);
    }
    // A capsule that is gone may be forgotten by the time it is asked for; then the hint has the cause.
    let truth = ask(services, host, id).await?;
    let stopped = hint.filter(|hint| hint.state() == agent::CapsuleState::Stopped);
    settle(services, &row, truth.as_ref().or(stopped), false).await?;
    Ok(Examined::Done)
}
