//! The bus inside one process: a bounded queue for each subscriber, by topic.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::broadcast;

use super::{Bus, Change, Received, Topic};

/// Changes of one capsule that a subscriber may be behind before it has to look at the database again.
pub(super) const OF_CAPSULE: usize = 64;
/// The same of all capsules of a team, or of all there are.
pub(super) const OF_TEAM: usize = 256;

type Topics = HashMap<Topic, broadcast::Sender<Received>>;

fn queue(topic: Topic) -> usize {
    match topic {
        Topic::Capsule(_) | Topic::Terminals(_) => OF_CAPSULE,
        Topic::Team(_) | Topic::Capsules => OF_TEAM,
    }
}

/// Everybody who listens in this process.
#[derive(Debug, Default)]
pub(super) struct Hub {
    topics: Mutex<Topics>,
}

impl Hub {
    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send(&self, change: &Change) {
        let topics = self.topics();
        for sender in change.topics().filter_map(|topic| topics.get(&topic)) {
            // That the last one has just gone is no error.
            let _ = sender.send(Received::Change(change.clone()));
        }
    }

    /// Lets everybody look at the database again.
    pub(super) fn refresh(&self) {
        for sender in self.topics().values() {
            let _ = sender.send(Received::Missed);
        }
    }

    pub(super) fn subscribe(self: &Arc<Self>, topic: Topic) -> Subscriber {
        let mut topics = self.topics();
        let sender = topics.entry(topic).or_insert_with(|| broadcast::channel(queue(topic)).0);
        let receiver = Some(sender.subscribe());
        drop(topics);
        Subscriber { hub: self.clone(), topic, receiver }
    }

    /// Topics that somebody listens to.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.topics().len()
    }
}

/// One who listens, until it is dropped.
#[derive(Debug)]
pub(crate) struct Subscriber {
    hub: Arc<Hub>,
    topic: Topic,
    /// Always there but while it is dropped.
    receiver: Option<broadcast::Receiver<Received>>,
}

impl Subscriber {
    /// What comes next, for as long as it takes.
    pub(crate) async fn receive(&mut self) -> Received {
        let Some(receiver) = &mut self.receiver else { return std::future::pending().await };
        match receiver.recv().await {
            Ok(received) => received,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // What is still queued is older than what the database says.
                *receiver = receiver.resubscribe();
                Received::Missed
            }
            // Cannot be: the hub keeps the sender as long as there is a receiver, and this one keeps the hub.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let mut topics = self.hub.topics();
        self.receiver = None;
        if topics.get(&self.topic).is_some_and(|sender| sender.receiver_count() == 0) {
            topics.remove(&self.topic);
        }
    }
}

/// The bus of a process that has no other replicas.
#[derive(Debug, Default)]
pub(crate) struct LocalBus {
    pub(super) hub: Arc<Hub>,
}

#[async_trait::async_trait]
impl Bus for LocalBus {
    fn publish(&self, change: Change) {
        self.hub.send(&change);
    }

    fn subscribe(&self, topic: Topic) -> Subscriber {
        self.hub.subscribe(topic)
    }
}
