//! Where the ports of a capsule are and who may reach them: one statement, remembered for a while.
//!
//! What is remembered is dropped when the capsule changes. A reading that was under way at that moment is not remembered:
//! it may be of before the change.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, JoinType, QueryFilter, QueryOrder, QuerySelect, RelationDef,
};
use tokio_util::sync::CancellationToken;
use wrenn_entities::{
    CapsuleId, HostId, TeamId,
    capsule::{self, CapsuleState},
    public_port,
};

use crate::{
    Error,
    bus::{Change, Received, Subscriber},
};

/// For how long what nobody said had changed is taken to be as it was: a change in another replica may go unheard.
const KEPT: Duration = Duration::from_secs(120);
/// Capsules that are remembered at most.
const CAPSULES: usize = 10_000;

/// What has to be known of a capsule for a request to one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub capsule: CapsuleId,
    pub team_id: TeamId,
    pub host: Option<HostId>,
    pub state: CapsuleState,
    pub auto_resume: bool,
    public: Vec<u16>,
}

impl Route {
    pub(crate) fn is_public(&self, port: u16) -> bool {
        self.public.contains(&port)
    }

    /// The host that can be asked: its capsule may run there.
    pub(crate) fn live(&self) -> Option<HostId> {
        match self.state {
            CapsuleState::Running | CapsuleState::Snapshotting => self.host,
            _ => None,
        }
    }
}

enum Slot {
    /// Somebody reads it; the number tells them whether it is still theirs.
    Reading(u64),
    Known(Arc<Route>, Instant),
}

#[derive(Default)]
struct Remembered {
    slots: HashMap<CapsuleId, Slot>,
    readings: u64,
}

/// What was read lately.
#[derive(Default)]
pub(crate) struct Routes(Mutex<Remembered>);

impl Routes {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: there is no such capsule.
    pub(crate) async fn get(
        &self,
        db: &DatabaseConnection,
        id: CapsuleId,
    ) -> Result<Option<Arc<Route>>, Error> {
        let reading = {
            let mut remembered = self.remembered();
            if let Some(Slot::Known(route, read)) = remembered.slots.get(&id)
                && read.elapsed() < KEPT
            {
                return Ok(Some(route.clone()));
            }
            remembered.begin(id)
        };
        let route = read(db, id).await.map(|route| route.map(Arc::new));
        let mut remembered = self.remembered();
        if matches!(remembered.slots.get(&id), Some(Slot::Reading(of)) if *of == reading) {
            match &route {
                Ok(Some(route)) => {
                    remembered.slots.insert(id, Slot::Known(route.clone(), Instant::now()));
                }
                _ => drop(remembered.slots.remove(&id)),
            }
        }
        route
    }

    pub(crate) fn forget(&self, id: CapsuleId) {
        self.remembered().slots.remove(&id);
    }

    /// Forgets what changes, until told to stop.
    pub(crate) async fn follow(self: Arc<Self>, mut changes: Subscriber, stop: CancellationToken) {
        while let Some(received) = stop.run_until_cancelled(changes.receive()).await {
            match received {
                Received::Change(Change::Capsule(row)) => self.forget(row.id),
                Received::Change(Change::CapsuleWithdrawn { id, .. }) => self.forget(id),
                Received::Missed => self.remembered().slots.clear(),
                Received::Closed => break,
            }
        }
    }
}

impl Remembered {
    fn begin(&mut self, id: CapsuleId) -> u64 {
        if self.slots.len() >= CAPSULES {
            self.slots.retain(|_, slot| matches!(slot, Slot::Known(_, read) if read.elapsed() < KEPT));
        }
        self.readings += 1;
        if self.slots.len() < CAPSULES {
            self.slots.insert(id, Slot::Reading(self.readings));
        }
        self.readings
    }
}

/// The public ports of capsules, of those that have any.
pub(crate) async fn public_ports(
    db: &DatabaseConnection,
    ids: Vec<CapsuleId>,
) -> Result<HashMap<CapsuleId, Vec<u16>>, Error> {
    let mut ports: HashMap<_, Vec<_>> = HashMap::new();
    let rows = public_port::Entity::find()
        .filter(public_port::Column::CapsuleId.is_in(ids))
        .order_by_asc(public_port::Column::Port)
        .all(db)
        .await?;
    for row in rows {
        ports.entry(row.capsule_id).or_default().extend(u16::try_from(row.port));
    }
    Ok(ports)
}

/// From a public port to its capsule.
fn its_capsule() -> RelationDef {
    public_port::Entity::belongs_to(capsule::Entity)
        .from(public_port::Column::CapsuleId)
        .to(capsule::Column::Id)
        .into()
}

/// The capsule, with one line for each of its public ports.
async fn read(db: &DatabaseConnection, id: CapsuleId) -> Result<Option<Route>, Error> {
    use capsule::Column;
    type Line = (TeamId, Option<HostId>, CapsuleState, bool, Option<i32>);
    let lines: Vec<Line> = capsule::Entity::find_by_id(id)
        .select_only()
        .columns([Column::TeamId, Column::HostId, Column::State, Column::AutoResume])
        .column(public_port::Column::Port)
        .join_rev(JoinType::LeftJoin, its_capsule())
        .into_tuple()
        .all(db)
        .await?;
    let public = lines.iter().filter_map(|line| u16::try_from(line.4?).ok()).collect();
    Ok(lines.into_iter().next().map(|(team_id, host, state, auto_resume, _)| Route {
        capsule: id,
        team_id,
        host,
        state,
        auto_resume,
        public,
    }))
}
