//! Changes on their way from where they are written to everybody who watches.
//!
//! Inside one process. The queue of a subscriber is bounded: one that falls behind is told so and reads the database
//! again, it never makes the queue grow.

use std::sync::Arc;

use tokio::sync::broadcast;
use wrenn_entities::{CapsuleId, TeamId, capsule};

/// Changes that a subscriber may be behind before it has to start afresh.
const QUEUE: usize = 1024;

/// Something that has just been committed.
#[derive(Clone, Debug)]
pub enum Change {
    /// The capsule as it is now.
    Capsule(Arc<capsule::Model>),
    /// There is no such capsule after all: nothing could be made of the request.
    CapsuleWithdrawn { team_id: TeamId, id: CapsuleId },
}

/// What a subscriber gets.
#[derive(Debug)]
pub enum Received {
    Change(Change),
    /// Changes were missed: look at the database again.
    Missed,
    /// Nothing will follow.
    Closed,
}

/// Where changes are announced.
#[derive(Debug)]
pub struct Bus {
    sender: broadcast::Sender<Change>,
}

impl Default for Bus {
    fn default() -> Self {
        Self { sender: broadcast::channel(QUEUE).0 }
    }
}

impl Bus {
    /// Tells everybody. Call it after the change was committed.
    pub fn publish(&self, change: Change) {
        // That nobody listens is no error.
        let _ = self.sender.send(change);
    }

    /// Everything published from now on. Subscribe first, then read the present state: nothing is missed between.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber {
        Subscriber { receiver: self.sender.subscribe() }
    }
}

#[derive(Debug)]
pub struct Subscriber {
    receiver: broadcast::Receiver<Change>,
}

impl Subscriber {
    pub async fn receive(&mut self) -> Received {
        match self.receiver.recv().await {
            Ok(change) => Received::Change(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Received::Missed,
            Err(broadcast::error::RecvError::Closed) => Received::Closed,
        }
    }
}
