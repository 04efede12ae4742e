//! What a process has written, who reads it, and when that makes the process wait.
//!
//! ```text
//!                      attach                        last reader leaves,
//!      ┌───────────┐ ───────────▶ ┌────────────┐     output not ended     ┌────────┐
//!      │ unwatched │              │  watched   │ ───────────────────────▶ │  held  │
//!      │ runs free │ ◀─────────── │ as slow as │ ◀─────────────────────── │        │
//!      └───────────┘  last reader │ its slowest│          attach          └────────┘
//!            ▲        leaves,     │   reader   │                               │
//!            │        all ended   └────────────┘                               │
//!            └─────────────────────────────────────────────────────────────────┘
//!                                  the reconnect grace has passed
//! ```
//!
//! **Unwatched**, the process writes as it likes and the oldest bytes are overwritten. **Watched**, nothing
//! a reader still has to get is overwritten: the process may be [`LIVE`] bytes ahead of its slowest reader,
//! then its pipe is left full. A reader that leaves while others stay is forgotten at once. **Held** is for
//! the reader whose host died: until it comes back, or the grace is over, the process may fill what room
//! there is and then waits.
//!
//! A reader's position is what was handed to the transport, which is ahead of what arrived. So that a new
//! reader can ask again for what was under way, [`HISTORY`] bytes before the slowest position are kept too.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use wrenn_proto::envd::v1::process_event::Event;
use wrenn_proto::envd::v1::{OutputCursor, OutputStream, ProcessExited, ProcessGap, ProcessOutput};

use crate::exit::Exit;
use crate::ring::{Read, Ring};

/// Bytes a process may be ahead of its slowest reader, per stream: two events, so that one is made while the other goes.
pub const LIVE: u64 = 128 * 1024;
/// Bytes already handed to every reader that are still kept, per stream. More than may be under way to a reader that
/// has stopped: on each of two hops an event and the stream's window (128 KiB); in the control plane an event, what
/// waits of it for its socket and what that has not confirmed (256 KiB and an event, in base64).
pub const HISTORY: u64 = 896 * 1024;
/// The most data in one event, in bytes.
pub const CHUNK: usize = 64 * 1024;

/// A process has stdout and stderr, or one terminal.
const STREAMS: usize = 2;
type Positions = [u64; STREAMS];

/// The output of one process.
#[derive(Debug)]
pub struct Output {
    kinds: &'static [OutputStream],
    grace: Duration,
    state: Mutex<State>,
    /// Readers wait here for bytes, an end, the exit.
    changed: Notify,
    /// Each stream's pump waits here for room.
    room: [Notify; STREAMS],
}

#[derive(Debug)]
struct State {
    streams: Vec<Stream>,
    readers: Vec<Reader>,
    next_reader: u64,
    hold: Option<Hold>,
    exit: Option<Exit>,
    /// When there was something to read last, or somebody who read.
    used: Instant,
}

#[derive(Debug)]
struct Stream {
    ring: Ring,
    ended: bool,
}

#[derive(Debug)]
struct Reader {
    id: ReaderId,
    /// The first byte of each stream not yet handed over.
    positions: Positions,
    /// The stream to look at first, so that neither starves the other.
    turn: usize,
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    positions: Positions,
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderId(u64);

/// A cursor that lies beyond what was ever written.
#[derive(Debug, thiserror::Error)]
#[error("offset {wanted} is beyond the {written} bytes written so far")]
pub struct BeyondEnd {
    pub wanted: u64,
    pub written: u64,
}

/// What a reader gets next.
#[derive(Debug, PartialEq)]
pub enum Next {
    Event(Event),
    /// The process exited and everything was delivered; the last event.
    Exited(ProcessExited),
    /// Nothing yet: wait for [`Output::changed`].
    Wait,
}

/// How much a pump may read.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    /// This many bytes, at least one.
    Bytes(usize),
    /// None before a reader moves, or this moment if there is one.
    None { until: Option<Instant> },
}

impl Output {
    /// The output of a process that has pipes: stdout is stream 0, stderr stream 1.
    pub fn plain(grace: Duration) -> Self {
        Self::new(&[OutputStream::Stdout, OutputStream::Stderr], grace)
    }

    /// The output of a process that has a terminal, stream 0.
    pub fn terminal(grace: Duration) -> Self {
        Self::new(&[OutputStream::Pty], grace)
    }

    fn new(kinds: &'static [OutputStream], grace: Duration) -> Self {
        let streams =
            kinds.iter().map(|_| Stream { ring: Ring::new((LIVE + HISTORY) as usize), ended: false });
        let state = State {
            streams: streams.collect(),
            readers: Vec::new(),
            next_reader: 0,
            hold: None,
            exit: None,
            used: Instant::now(),
        };
        Self {
            kinds,
            grace,
            state: Mutex::new(state),
            changed: Notify::new(),
            room: <[Notify; STREAMS]>::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new reader, from the cursor on. Ends a hold: the process waits for this reader now.
    ///
    /// # Errors
    /// The cursor asks for bytes beyond the next one to be written.
    pub fn attach(&self, after: &OutputCursor) -> Result<ReaderId, BeyondEnd> {
        let mut state = self.lock();
        let mut positions = Positions::default();
        for ((position, stream), kind) in positions.iter_mut().zip(&state.streams).zip(self.kinds) {
            let wanted = match kind {
                OutputStream::Stdout => after.stdout,
                OutputStream::Stderr => after.stderr,
                OutputStream::Pty => after.pty,
                OutputStream::Unspecified => None,
            };
            let (wanted, written) = (wanted.unwrap_or(stream.ring.oldest()), stream.ring.head());
            if wanted > written {
                return Err(BeyondEnd { wanted, written });
            }
            *position = wanted;
        }
        let id = ReaderId(state.next_reader);
        state.next_reader += 1;
        state.readers.push(Reader { id, positions, turn: 0 });
        state.hold = None;
        drop(state);
        self.wake_pumps();
        Ok(id)
    }

    /// The reader goes away, for whatever reason.
    pub fn detach(&self, id: ReaderId) {
        let mut state = self.lock();
        let Some(index) = state.readers.iter().position(|reader| reader.id == id) else { return };
        let reader = state.readers.swap_remove(index);
        state.used = Instant::now();
        if state.readers.is_empty() && state.streams.iter().any(|stream| !stream.ended) {
            state.hold = Some(Hold { positions: reader.positions, until: Instant::now() + self.grace });
        }
        drop(state);
        self.wake_pumps();
    }

    /// Hands the reader what comes next and moves it past it.
    pub fn next(&self, id: ReaderId) -> Next {
        let mut state = self.lock();
        let State { streams, readers, exit, .. } = &mut *state;
        let Some(reader) = readers.iter_mut().find(|reader| reader.id == id) else { return Next::Wait };
        let mut over = true;
        for step in 0..streams.len() {
            let index = (reader.turn + step) % streams.len();
            let (Some(stream), Some(position), Some(&kind), Some(room)) = (
                streams.get(index),
                reader.positions.get_mut(index),
                self.kinds.get(index),
                self.room.get(index),
            ) else {
                continue;
            };
            let from = *position;
            let event = match stream.ring.read_from(from, CHUNK) {
                Read::Data(data) => {
                    *position += data.len() as u64;
                    Event::Output(ProcessOutput { stream: kind.into(), sequence: from, data })
                }
                Read::Gap { to } => {
                    *position = to;
                    Event::Gap(ProcessGap { stream: kind.into(), from, to })
                }
                Read::Empty => {
                    over &= stream.ended;
                    continue;
                }
            };
            reader.turn = index + 1;
            room.notify_one();
            return Next::Event(event);
        }
        match exit {
            Some(exit) if over => Next::Exited(exit.to_event()),
            _ => Next::Wait,
        }
    }

    /// Completes at the next change after its creation.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Completes when the room of a stream may have changed since it was last asked for.
    pub async fn room_changed(&self, stream: usize) {
        match self.room.get(stream) {
            Some(room) => room.notified().await,
            None => std::future::pending().await,
        }
    }

    /// How much may be read into a stream now.
    pub fn room(&self, stream: usize) -> Room {
        let mut state = self.lock();
        if state.hold.is_some_and(|hold| hold.until <= Instant::now()) {
            state.hold = None;
        }
        let positions = state.readers.iter().map(|reader| reader.positions);
        let slowest = positions
            .chain(state.hold.map(|hold| hold.positions))
            .filter_map(|positions| positions.get(stream).copied())
            .min();
        let head = state.streams.get(stream).map_or(0, |stream| stream.ring.head());
        let ahead = slowest.map_or(0, |slowest| head.saturating_sub(slowest));
        match LIVE.saturating_sub(ahead) {
            0 => Room::None { until: state.hold.map(|hold| hold.until) },
            bytes => Room::Bytes(bytes.min(CHUNK as u64) as usize),
        }
    }

    /// Lets `source` write up to `limit` bytes into a stream and wakes its readers.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn fill<E>(
        &self,
        stream: usize,
        limit: usize,
        source: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let mut state = self.lock();
        let count = match state.streams.get_mut(stream) {
            Some(stream) => stream.ring.fill(limit, source)?,
            None => 0,
        };
        if count > 0 {
            state.used = Instant::now();
        }
        drop(state);
        if count > 0 {
            self.changed.notify_waiters();
        }
        Ok(count)
    }

    /// Bytes written to a stream so far.
    pub fn written(&self, stream: usize) -> u64 {
        self.lock().streams.get(stream).map_or(0, |stream| stream.ring.head())
    }

    /// Nothing more will come on this stream.
    pub fn end(&self, stream: usize) {
        let mut state = self.lock();
        if let Some(stream) = state.streams.get_mut(stream) {
            stream.ended = true;
            stream.ring.shrink();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The process exited. Readers learn it once they have everything.
    pub fn set_exit(&self, exit: Exit) {
        self.lock().exit = Some(exit);
        self.changed.notify_waiters();
    }

    /// How the process exited, if it did.
    pub fn exit(&self) -> Option<Exit> {
        self.lock().exit
    }

    /// Since when nothing was written and nobody read; none while somebody does.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        state.readers.is_empty().then_some(state.used)
    }

    /// Bytes of memory the rings occupy.
    pub fn footprint(&self) -> usize {
        self.lock().streams.iter().map(|stream| stream.ring.footprint()).sum()
    }

    fn wake_pumps(&self) {
        for room in &self.room {
            room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
