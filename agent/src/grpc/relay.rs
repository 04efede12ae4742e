//! What a process says, passed on from its guest: message by message, each asked for only when the one before
//! was taken, so that a reader that stops reading holds the process back and nothing piles up here.
//!
//! The stream ends with the capsule's life. A connection to a guest that lives is made anew without the
//! reader noticing: it goes on at the byte where it broke.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};
use wrenn_proto::envd::v1::process_event::Event;
use wrenn_proto::envd::v1::selector::By;
use wrenn_proto::envd::v1::{
    FollowRequest, OutputCursor, OutputStream, ProcessEvent, ProcessExited, Selector,
};

use super::status::with_cause;
use super::waited::for_guest;
use crate::capsule::{CapsuleError, LifeEnd, Running};
use crate::request_id::RequestId;

/// How long a broken connection to a living guest is tried to be made again.
const REOPEN_FOR: Duration = Duration::from_secs(10);
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// The events of one process from `cursor` on, until it exits or its capsule's life ends.
pub fn relay(
    running: Running,
    events: Streaming<ProcessEvent>,
    cursor: OutputCursor,
    id: RequestId,
) -> impl Stream<Item = Result<ProcessEvent, Status>> + Send {
    let relay = Relay { running, events, id, pid: None, cursor, over: false };
    futures_util::stream::unfold(relay, |mut relay| async move {
        let item = relay.next().await?;
        Some((item, relay))
    })
}

/// A call into the guest that ends with the life it belongs to.
pub async fn within_life<T>(
    running: &Running,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let outcome = tokio::select! {
        biased;
        outcome = for_guest(call) => outcome,
        end = running.handle.life.ended() => return Err(refusal(running, end)),
    };
    match outcome {
        Err(status) => Err(ended_by(running, status).await),
        outcome => outcome,
    }
}

/// What a call or a stream that ended with `status` is told: the end of the life, where that is what broke it.
pub async fn ended_by(running: &Running, status: Status) -> Status {
    if !broke(&status) {
        return status;
    }
    match running.handle.life.end_behind_it().await {
        Some(end) => refusal(running, end),
        None => Status::unavailable(format!("the connection to the guest broke: {}", status.message())),
    }
}

/// Whether the connection failed; what envd itself answers has no cause on this side.
fn broke(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What a call gets whose capsule went away under it.
pub fn refusal(running: &Running, end: LifeEnd) -> Status {
    match end {
        LifeEnd::Lost(cause) => {
            let error = CapsuleError::WrongState {
                id: running.id,
                state: crate::capsule::State::Stopped,
                cause: Some(cause),
            };
            super::status::status(&error)
        }
        end => interruption(&end),
    }
}

/// The end of a stream whose process goes on: it can be followed again from where the reader is.
fn interruption(end: &LifeEnd) -> Status {
    match end {
        LifeEnd::AgentStopping => with_cause(Status::unavailable("the agent is stopping"), "AGENT_STOPPING"),
        _ => with_cause(Status::unavailable("the capsule was paused"), "CAPSULE_PAUSED"),
    }
}

struct Relay {
    running: Running,
    events: Streaming<ProcessEvent>,
    id: RequestId,
    /// Known once the guest said `started`.
    pid: Option<u32>,
    /// Past the last byte passed on, or where it was to begin, of each stream.
    cursor: OutputCursor,
    over: bool,
}

impl Relay {
    async fn next(&mut self) -> Option<Result<ProcessEvent, Status>> {
        while !self.over {
            let received = tokio::select! {
                biased;
                received = for_guest(self.events.message()) => received,
                end = self.running.handle.life.ended() => return Some(self.end(end)),
            };
            match received {
                Ok(Some(event)) => {
                    if let Some(event) = self.note(event) {
                        return Some(Ok(event));
                    }
                }
                Ok(None) => return None,
                Err(status) if broke(&status) => {
                    if let Some(ended) = self.reopen(status).await {
                        return Some(ended);
                    }
                }
                Err(status) => {
                    self.over = true;
                    return Some(Err(status));
                }
            }
        }
        None
    }

    /// Follows what passes; the `started` of a stream that was reopened is not passed on again.
    fn note(&mut self, event: ProcessEvent) -> Option<ProcessEvent> {
        match &event.event {
            Some(Event::Started(started)) if self.pid.replace(started.pid).is_some() => return None,
            Some(Event::Output(output)) => {
                self.advance(output.stream, output.sequence + output.data.len() as u64);
            }
            Some(Event::Gap(gap)) => self.advance(gap.stream, gap.to),
            Some(Event::Exited(_)) => self.over = true,
            _ => {}
        }
        Some(event)
    }

    fn advance(&mut self, stream: i32, to: u64) {
        match OutputStream::try_from(stream) {
            Ok(OutputStream::Stdout) => self.cursor.stdout = Some(to),
            Ok(OutputStream::Stderr) => self.cursor.stderr = Some(to),
            Ok(OutputStream::Pty) => self.cursor.pty = Some(to),
            _ => {}
        }
    }

    fn end(&mut self, end: LifeEnd) -> Result<ProcessEvent, Status> {
        self.over = true;
        match end {
            LifeEnd::Lost(cause) => {
                let exited = ProcessExited { exit_code: None, signal: None, cause: Some(cause.to_proto()) };
                Ok(ProcessEvent { event: Some(Event::Exited(exited)) })
            }
            end => Err(interruption(&end)),
        }
    }

    /// Goes on at the byte where the connection broke. What it answers with ends the stream.
    async fn reopen(&mut self, status: Status) -> Option<Result<ProcessEvent, Status>> {
        let deadline = Instant::now() + REOPEN_FOR;
        let life = self.running.handle.life.clone();
        let mut last = status;
        while let Some(pid) = self.pid {
            if let Ok(end) = timeout(REOPEN_PAUSE, life.ended()).await {
                return Some(self.end(end));
            }
            let follow = FollowRequest {
                selector: Some(Selector { by: Some(By::Pid(pid)) }),
                after: Some(self.cursor),
            };
            let request = self.running.handle.guest.request(follow, &self.id);
            let mut processes = self.running.handle.guest.processes();
            let followed = tokio::select! {
                followed = for_guest(processes.follow(request)) => followed,
                end = life.ended() => return Some(self.end(end)),
            };
            match followed {
                Ok(events) => {
                    tracing::info!(capsule = %self.running.id, pid, "took an output stream up again");
                    self.events = events.into_inner();
                    return None;
                }
                Err(status) if broke(&status) && Instant::now() < deadline => last = status,
                Err(status) => {
                    self.over = true;
                    return Some(Err(status));
                }
            }
        }
        // Not even `started` came: whoever asked does not know of a process yet.
        if let Some(end) = life.end_behind_it().await {
            return Some(self.end(end));
        }
        self.over = true;
        Some(Err(Status::new(
            Code::Unavailable,
            format!("the connection to the guest broke: {}", last.message()),
        )))
    }
}
