//! A reader of one process's output, as the stream of events that a call answers with.

use futures_util::Stream;
use tonic::Status;
use wrenn_proto::envd::v1::process_event::Event;
use wrenn_proto::envd::v1::{OutputCursor, ProcessEvent, ProcessStarted};

use crate::output::{BeyondEnd, Next, ReaderId};
use crate::process::Trail;

/// Attached from its creation until it is dropped.
#[derive(Debug)]
pub struct Follower {
    trail: Trail,
    reader: ReaderId,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Announce,
    Follow,
    Over,
}

impl Follower {
    /// # Errors
    /// The cursor lies beyond what was written.
    pub fn attach(trail: Trail, after: &OutputCursor) -> Result<Self, BeyondEnd> {
        let reader = trail.output.attach(after)?;
        Ok(Self { trail, reader, stage: Stage::Announce })
    }

    /// The events, each made only when it is asked for: what was asked for counts as delivered.
    pub fn into_stream(self) -> impl Stream<Item = Result<ProcessEvent, Status>> + Send + 'static {
        futures_util::stream::unfold(self, |mut follower| async move {
            let event = follower.next().await?;
            Some((Ok(ProcessEvent { event: Some(event) }), follower))
        })
    }

    async fn next(&mut self) -> Option<Event> {
        match self.stage {
            Stage::Announce => {
                self.stage = Stage::Follow;
                let (pid, tag) = (self.trail.pid, self.trail.tag.clone());
                Some(Event::Started(ProcessStarted { pid, tag }))
            }
            Stage::Follow => Some(self.follow().await),
            Stage::Over => None,
        }
    }

    async fn follow(&mut self) -> Event {
        loop {
            let changed = self.trail.output.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.trail.output.next(self.reader) {
                Next::Event(event) => return event,
                Next::Exited(exited) => {
                    self.stage = Stage::Over;
                    return Event::Exited(exited);
                }
                Next::Wait => changed.await,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.trail.output.detach(self.reader);
    }
}
