//! Changes on their way from where they are committed to everybody who watches, in whichever replica.
//!
//! ```text
//!   commit ──▶ Bus::publish ──▶ hub ──▶ subscribers of this process
//!                   │            ▲
//!                   ▼            │
//!             (Redis) talk    listen ◀── the other replicas' changes
//! ```
//!
//! One process on its own needs no more than the hub ([`LocalBus`]); several replicas are joined by Redis
//! ([`RedisBus`]). Whatever stands between, a subscriber is promised the same: it gets every change in the order in
//! which its replica learned of them, or it is told that it [missed](Received::Missed) some and reads the database
//! again. Queues are bounded; one that overflows is such a miss, and so is everything that keeps replicas from hearing
//! each other.

mod hub;
mod link;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wrenn_entities::{CapsuleId, TeamId, capsule};

pub(crate) use self::hub::Subscriber;
pub use self::link::BusError;
pub(crate) use self::{hub::LocalBus, link::RedisBus};

/// Something that has just been committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Change {
    /// The capsule as it is now.
    Capsule(Arc<capsule::Model>),
    /// There is no such capsule after all: nothing could be made of the request.
    CapsuleWithdrawn { team_id: TeamId, id: CapsuleId },
    /// A terminal in the capsule has another size.
    TerminalResized { id: CapsuleId, tag: String, columns: i32, rows: i32 },
}

/// What a subscriber wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    Capsule(CapsuleId),
    /// All capsules of a team.
    Team(TeamId),
    /// All capsules.
    Capsules,
    /// The terminals in a capsule.
    Terminals(CapsuleId),
}

impl Change {
    fn topics(&self) -> impl Iterator<Item = Topic> + use<> {
        let capsule = |id, team| [Some(Topic::Capsule(id)), Some(Topic::Team(team)), Some(Topic::Capsules)];
        let topics = match self {
            Self::Capsule(row) => capsule(row.id, row.team_id),
            Self::CapsuleWithdrawn { team_id, id } => capsule(*id, *team_id),
            Self::TerminalResized { id, .. } => [Some(Topic::Terminals(*id)), None, None],
        };
        topics.into_iter().flatten()
    }
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Received {
    Change(Change),
    /// Changes were missed, or may have been: look at the database again.
    Missed,
}

/// Where changes are announced.
#[async_trait::async_trait]
pub(crate) trait Bus: Send + Sync {
    /// Tells everybody; never waits. Call it after the change was committed.
    fn publish(&self, change: Change);

    /// Everything about the topic from now on. Subscribe first, then read the present state: nothing is missed between.
    fn subscribe(&self, topic: Topic) -> Subscriber;

    /// Says farewell to the other replicas.
    async fn close(&self) {}
}
