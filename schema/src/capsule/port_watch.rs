//! Watching the ports of capsules: one stream from the host for each capsule, however many watch it here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::Poll,
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::join_all,
    stream::{self, BoxStream},
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use wrenn_entities::{CapsuleId, capsule::Model};

use super::reach::live;
use crate::{Services, access::RequestId, host::Placed, port};

/// How long a host may take to begin telling of a capsule's ports before the capsule is shown without waiting for it.
const BEGIN: Duration = Duration::from_secs(2);

/// One capsule's ports, as long as somebody holds it.
struct Watched {
    /// How often they may have changed; 0: the host has not begun to tell.
    changes: watch::Receiver<u64>,
    _listening: AbortOnDropHandle<()>,
}

/// All that are watched at the moment.
#[derive(Default)]
pub(crate) struct PortWatches {
    watched: Mutex<HashMap<Placed, Weak<Watched>>>,
}

impl PortWatches {
    fn of(&self, services: &Arc<Services>, placed: Placed) -> Arc<Watched> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = watched.get(&placed).and_then(Weak::upgrade) {
            return present;
        }
        watched.retain(|_, one| one.strong_count() > 0);
        let (sender, changes) = watch::channel(0);
        let told = port::changes(services.clone(), RequestId(format!("ports-{}", placed.1)), placed);
        let listening = async move {
            let mut told = std::pin::pin!(told);
            while told.next().await.is_some() {
                sender.send_modify(|changes| *changes += 1);
            }
        };
        let new = Arc::new(Watched { changes, _listening: AbortOnDropHandle::new(tokio::spawn(listening)) });
        watched.insert(placed, Arc::downgrade(&new));
        new
    }
}

/// An item whenever the capsule's ports may have changed from now on. Returns once the host tells, or when it takes too
/// long: who looks then misses nothing, as a host that begins later counts as a change.
async fn changes(services: &Arc<Services>, placed: Placed) -> BoxStream<'static, ()> {
    let watched = services.port_watches.of(services, placed);
    let mut changes = watched.changes.clone();
    let _ = tokio::time::timeout(BEGIN, changes.wait_for(|changes| *changes > 0)).await;
    changes.borrow_and_update();
    stream::unfold((changes, watched), |(mut changes, watched)| async move {
        // The sender is there for as long as `watched` is.
        changes.changed().await.ok()?;
        Some(((), (changes, watched)))
    })
    .boxed()
}

/// The ports that one subscriber watches.
#[derive(Default)]
pub(super) struct PortChanges {
    watched: Vec<(Placed, BoxStream<'static, ()>)>,
}

impl PortChanges {
    /// From now on those of these capsules are watched that run, in the lives they have now.
    pub(super) async fn follow(&mut self, services: &Arc<Services>, rows: impl IntoIterator<Item = &Model>) {
        let mut new = Vec::new();
        for row in rows {
            let placed = live(row);
            let watched = self.watched.iter().find(|(watched, _)| watched.1 == row.id);
            if watched.map(|(watched, _)| *watched) != placed {
                self.forget(row.id);
                new.extend(placed);
            }
        }
        let begun = join_all(new.iter().map(|placed| changes(services, *placed))).await;
        self.watched.extend(new.into_iter().zip(begun));
    }

    /// At once: its next life is another stream.
    pub(super) fn forget(&mut self, id: CapsuleId) {
        self.watched.retain(|(watched, _)| watched.1 != id);
    }

    /// The next capsule whose ports may have changed; waits for ever if none is watched.
    pub(super) async fn next(&mut self) -> CapsuleId {
        std::future::poll_fn(|context| {
            for ((_, id), changes) in &mut self.watched {
                if let Poll::Ready(Some(())) = changes.poll_next_unpin(context) {
                    return Poll::Ready(*id);
                }
            }
            Poll::Pending
        })
        .await
    }
}
