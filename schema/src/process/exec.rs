//! The stream of a process's events, from the host's agent to whoever asked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_graphql::{Enum, SimpleObject};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tonic::Streaming;
use wrenn_entities::{CapsuleId, TeamId};
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use super::{HeldOutput, HeldOutputs, OutputStream, ProcessEvent, pid};
use crate::{
    Error, Services,
    access::Actor,
    capsule::reach::ask_agent,
    host::{answer, requested},
    spent,
};

/// What running a program to its end counts for in the reckoning of complexity: a request may do so a few times.
pub(super) const COMPLEXITY: usize = 2_000;
/// Bytes of each stream that are kept whatever else is held, so that small answers go on when large ones are too many.
const SMALL: usize = 64 * 1024;
/// How long a host may take to begin a stream.
const OPEN: Duration = Duration::from_secs(30);

/// A process that has run to its end.
#[derive(SimpleObject)]
pub struct ExecResult {
    pid: i32,
    exit_code: Option<i32>,
    signal: Option<String>,
    stdout: String,
    stderr: String,
    /// What stdout and stderr are: text when valid UTF-8, else base64.
    stdout_encoding: Encoding,
    stderr_encoding: Encoding,
    /// More than 16 MiB came on stdout or stderr, or more than 1 MiB where this is answered over a WebSocket, or more than
    /// the server had room for beside other answers; only the beginning is here, 64 KiB at least.
    truncated: bool,
    duration_ms: i32,
}

#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    #[graphql(name = "UTF8")]
    Utf8,
    #[graphql(name = "BASE64")]
    Base64,
}

/// Starts a process and follows it.
pub(super) async fn open(
    services: &Services,
    actor: &Actor,
    input: super::ExecInput,
    close_stdin: bool,
) -> Result<Streaming<envd::ProcessEvent>, Error> {
    let (id, process) = input.check(close_stdin)?;
    let message =
        agent::StartProcessRequest { capsule_id: id.to_string(), process: Some(process), keep_awake: false };
    // Of what is refused nothing was started.
    ask_agent(services, actor, id, |mut client| {
        let message = requested(message.clone(), &actor.request_id);
        async move { answer("Exec", OPEN, client.exec(message)).await }
    })
    .await
}

/// Follows a process that was started before.
pub(super) async fn follow(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
    of: envd::Selector,
    after: envd::OutputCursor,
) -> Result<Streaming<envd::ProcessEvent>, Error> {
    let process = envd::FollowRequest { selector: Some(of), after: Some(after) };
    let message = agent::FollowProcessRequest { capsule_id: id.to_string(), process: Some(process) };
    ask_agent(services, actor, id, |mut client| {
        let message = requested(message.clone(), &actor.request_id);
        async move { answer("FollowProcess", OPEN, client.follow_process(message)).await }
    })
    .await
}

/// The events as they come. Nothing is read ahead: who does not ask for the next event holds the process back.
/// A stream that breaks off before its last event ends with an error that says so.
pub(super) fn events(
    call: &'static str,
    mut wire: Streaming<envd::ProcessEvent>,
) -> impl Stream<Item = Result<ProcessEvent, Error>> + Send {
    async_stream::try_stream! {
        loop {
            let message = wire.message().await.map_err(|status| Error::from_agent(call, status))?;
            let Some(message) = message else { Err(Error::agent_lost())? };
            let Some(event) = ProcessEvent::from_wire(message) else { continue };
            let last = event.is_last();
            yield event;
            if last {
                break;
            }
        }
    }
}

/// Where what is kept counts.
struct Room<'a> {
    held: &'a HeldOutput,
    all: &'a Arc<HeldOutputs>,
    team: TeamId,
}

impl Room<'_> {
    fn take(&self, bytes: usize) -> bool {
        self.held.take(self.all, self.team, bytes)
    }
}

/// What is kept of one stream.
#[derive(Default)]
struct Kept {
    bytes: BytesMut,
    truncated: bool,
}

impl Kept {
    /// Once it is cut, nothing more is kept: it is the beginning.
    fn add(&mut self, data: &Bytes, room: &Room<'_>) {
        if self.truncated {
            return;
        }
        let before = self.bytes.len();
        let mut kept = data.len().min(room.held.of_each_stream() - before);
        if !room.take((before + kept).max(SMALL) - before.max(SMALL)) {
            kept = kept.min(SMALL.saturating_sub(before));
        }
        self.bytes.extend_from_slice(&data[..kept]);
        self.truncated = kept < data.len();
    }

    fn text(self) -> (String, Encoding) {
        match String::from_utf8(self.bytes.into()) {
            Ok(text) => (text, Encoding::Utf8),
            // A character that was cut in two at the end is no reason to call it binary.
            Err(error) if self.truncated && error.utf8_error().error_len().is_none() => {
                let whole = error.utf8_error().valid_up_to();
                let mut bytes = error.into_bytes();
                bytes.truncate(whole);
                (String::from_utf8(bytes).unwrap_or_default(), Encoding::Utf8)
            }
            Err(error) => (STANDARD.encode(error.as_bytes()), Encoding::Base64),
        }
    }
}

/// Runs a process to its end. What is kept of its output counts as `held`.
pub(super) async fn run(
    services: &Services,
    actor: &Actor,
    input: super::ExecInput,
    held: &HeldOutput,
) -> Result<ExecResult, Error> {
    use envd::process_event::Event;
    let began = Instant::now();
    let room = Room { held, all: &services.held_output, team: actor.team_id };
    let mut wire = open(services, actor, input, true).await?;
    let (mut stdout, mut stderr, mut process) = (Kept::default(), Kept::default(), 0);
    let exited = loop {
        let message =
            spent::more(wire.message()).await.map_err(|status| Error::from_agent("Exec", status))?;
        match message.ok_or_else(Error::agent_lost)?.event {
            Some(Event::Started(started)) => process = pid(started.pid),
            Some(Event::Output(output)) => match output.stream().into() {
                OutputStream::Stderr => stderr.add(&output.data, &room),
                OutputStream::Stdout | OutputStream::Pty => stdout.add(&output.data, &room),
            },
            // Cannot be: this reader was there from the first byte and holds the process back. If it were, what is
            // kept would not be what was written, and that has to be said.
            Some(Event::Gap(_)) => stdout.truncated = true,
            Some(Event::Exited(exited)) => break exited,
            None => {}
        }
    };
    // Nothing but the end is left, where the host says how long its guest took.
    if let Ok(Some(end)) = spent::more(wire.trailers()).await {
        spent::of_it_guests(&end);
    }
    if let Some(cause) = exited.cause {
        return Err(Error::unavailable(cause.message).with_cause(cause.code));
    }
    let truncated = stdout.truncated || stderr.truncated;
    let (stdout, stdout_encoding) = stdout.text();
    let (stderr, stderr_encoding) = stderr.text();
    Ok(ExecResult {
        pid: process,
        exit_code: exited.exit_code,
        signal: exited.signal,
        stdout,
        stderr,
        stdout_encoding,
        stderr_encoding,
        truncated,
        duration_ms: i32::try_from(began.elapsed().as_millis()).unwrap_or(i32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use wrenn_entities::TypedId as _;

    use super::*;

    fn add(kept: &mut Kept, data: &[u8], held: &HeldOutput, all: &Arc<HeldOutputs>, team: TeamId) {
        kept.add(&Bytes::copy_from_slice(data), &Room { held, all, team });
    }

    #[test]
    fn only_so_much_is_kept() {
        let team = TeamId::generate();
        for (held, most) in [(HeldOutput::default(), 16 << 20), (HeldOutput::of_socket(), 1 << 20)] {
            let (mut kept, all) = (Kept::default(), Arc::new(HeldOutputs::new(2 * most)));
            let mut add = |data: &[u8]| add(&mut kept, data, &held, &all, team);
            add(&vec![b'a'; most - 1]);
            add("ä".as_bytes());
            add(b"b");
            assert!(kept.truncated);
            assert_eq!(kept.bytes.len(), most);
            let (text, encoding) = kept.text();
            assert_eq!((text.len(), encoding), (most - 1, Encoding::Utf8), "half a character is dropped");
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_cut_and_a_little_is_always_kept() {
        let (all, team) = (Arc::new(HeldOutputs::new(200)), TeamId::generate());
        let (held, mut kept) = (HeldOutput::default(), Kept::default());
        add(&mut kept, &vec![b'a'; SMALL + 60], &held, &all, team);
        add(&mut kept, &[b'a'; 40], &held, &all, team);
        assert!(!kept.truncated, "half of all is there for one team");
        let one_more = || {
            let (held, mut kept) = (HeldOutput::default(), Kept::default());
            add(&mut kept, &vec![b'a'; SMALL + 1], &held, &all, team);
            add(&mut kept, b"b", &held, &all, team);
            (kept.bytes.len(), kept.truncated)
        };
        assert_eq!(one_more(), (SMALL, true), "no hole, and no second beginning");
        drop(kept);
        assert_eq!(one_more(), (SMALL, true), "the answer is not sent yet");
        drop(held);
        assert_eq!(one_more(), (SMALL + 2, false));
    }

    #[test]
    fn what_is_no_text_is_base64() {
        let kept = Kept { bytes: BytesMut::from(&[0xff, 0x00][..]), truncated: false };
        assert_eq!(kept.text(), ("/wA=".to_owned(), Encoding::Base64));
    }
}
