//! All capsules, then every change. A reader that falls behind begins again.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::Stream;
use tonic::Status;
use wrenn_proto::agent::v1::capsule_event::Event;
use wrenn_proto::agent::v1::{CapsuleEvent, Resync, Synced};

use super::status::with_cause;
use crate::capsule::{CapsuleRegistry, CapsuleView};
use tokio_util::sync::CancellationToken;

struct Watch {
    capsules: Arc<CapsuleRegistry>,
    changes: Receiver<Arc<CapsuleView>>,
    pending: VecDeque<Event>,
    stop: CancellationToken,
}

/// Until the reader goes away or the agent stops.
pub fn watch(
    capsules: Arc<CapsuleRegistry>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<CapsuleEvent, Status>> + Send {
    // Subscribed before they are listed: a change in between is seen twice, never missed.
    let changes = capsules.changes();
    let pending = everything(&capsules).collect();
    let watch = Watch { capsules, changes, pending, stop };
    futures_util::stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Some((item.map(|event| CapsuleEvent { event: Some(event) }), watch))
    })
}

fn everything(capsules: &CapsuleRegistry) -> impl Iterator<Item = Event> {
    let all = capsules.list().into_iter().map(|view| Event::Capsule(view.to_proto()));
    all.chain([Event::Synced(Synced {})])
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Event, Status>> {
        if let Some(event) = self.pending.pop_front() {
            return Some(Ok(event));
        }
        let change = tokio::select! {
            change = self.changes.recv() => change,
            () = self.stop.cancelled() => {
                return Some(Err(with_cause(Status::unavailable("the agent is stopping"), "AGENT_STOPPING")));
            }
        };
        match change {
            Ok(view) => Some(Ok(Event::Capsule(view.to_proto()))),
            Err(RecvError::Lagged(_)) => {
                self.changes = self.changes.resubscribe();
                self.pending.extend(everything(&self.capsules));
                Some(Ok(Event::Resync(Resync {})))
            }
            Err(RecvError::Closed) => None,
        }
    }
}
