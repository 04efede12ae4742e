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
//! a reader still has to get is overwritten: the process may be [`LIVE`] bytes ahead of its slowest reader, or as much
//! as its ring has, then its pipe is left full. A reader that leaves while others stay is forgotten at once. **Held** is for
//! the reader whose host died: until it comes back, or the grace is over, the process may fill what room
//! there is and then waits.
//!
//! A reader's position is what was handed to the transport, which is ahead of what arrived. So that a new
//! reader can ask again for what was under way, [`HISTORY`] bytes before the slowest position are kept too, as far as
//! all processes together leave room for it ([`budget`]).

pub mod budget;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use wrenn_proto::envd::v1::process_event::Event;
use wrenn_proto::envd::v1::{OutputCursor, OutputStream, ProcessExited, ProcessGap, ProcessOutput};

use crate::exit::Exit;
use crate::output::budget::Budget;
use crate::ring::{FIRST, Read, Ring};

/// Bytes a process may be ahead of its slowest reader, per stream: two events, so that one is made while the other goes.
pub const LIVE: u64 = 128 * 1024;
/// Bytes already handed to every reader that are still kept, per stream. More than may be under way to a reader that
/// has stopped: on each of two hops an event and the stream's window (128 KiB); in the control plane an event, what
/// waits of it for its socket and what that has not confirmed (256 KiB and an event, in base64).
pub const HISTORY: u64 = 896 * 1024;
/// The most data in one event, in bytes.
pub const CHUNK: usize = 64 * 1024;
/// The most that a ring grows to, in bytes.
const MOST: usize = (LIVE + HISTORY) as usize;

/// A process has stdout and stderr, or one terminal.
const STREAMS: usize = 2;
type Positions = [u64; STREAMS];

/// The output of one process.
#[derive(Debug)]
pub struct Output {
    kinds: &'static [OutputStream],
    budget: Arc<Budget>,
    /// Locked after the budget, never before it.
    state: Arc<Mutex<State>>,
    /// Readers wait here for bytes, an end, the exit.
    changed: Notify,
    /// Each stream's pump waits here for room.
    room: [Notify; STREAMS],
}

#[derive(Debug)]
struct State {
    grace: Duration,
    streams: Vec<Stream>,
    readers: Vec<Reader>,
    next_reader: u64,
    hold: Option<Hold>,
    exit: Option<Exit>,
    /// When there was something new to read or learn last, or somebody who read.
    used: Instant,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub fn plain(grace: Duration, budget: &Arc<Budget>) -> Self {
        Self::new(&[OutputStream::Stdout, OutputStream::Stderr], grace, budget)
    }

    /// The output of a process that has a terminal, stream 0.
    pub fn terminal(grace: Duration, budget: &Arc<Budget>) -> Self {
        Self::new(&[OutputStream::Pty], grace, budget)
    }

    fn new(kinds: &'static [OutputStream], grace: Duration, budget: &Arc<Budget>) -> Self {
        let streams = kinds.iter().map(|_| Stream { ring: Ring::new(FIRST), ended: false });
        let state = State {
            grace,
            streams: streams.collect(),
            readers: Vec::new(),
            next_reader: 0,
            hold: None,
            exit: None,
            used: Instant::now(),
        };
        let state = Arc::new(Mutex::new(state));
        budget.register(&state);
        Self {
            kinds,
            budget: Arc::clone(budget),
            state,
            changed: Notify::new(),
            room: <[Notify; STREAMS]>::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
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
            state.hold = Some(Hold { positions: reader.positions, until: Instant::now() + state.grace });
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

    /// How much may be read into a stream now. Its ring grows for that, if it may.
    pub fn room(&self, stream: usize) -> Room {
        if self.lock().wants_more(stream) {
            self.budget.enlarge(&self.state, stream);
        }
        let state = self.lock();
        let now = Instant::now();
        match state.room(stream, now) {
            0 => Room::None { until: state.hold(now).map(|hold| hold.until) },
            bytes => Room::Bytes(bytes),
        }
    }

    /// Lets `source` write up to `limit` bytes into a stream and wakes its readers. Nothing if there is no room any more.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn fill<E>(
        &self,
        stream: usize,
        limit: usize,
        source: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Option<usize>, E> {
        let mut state = self.lock();
        let now = Instant::now();
        // Since room was asked for, a reader may have come, or another process taken it.
        let limit = limit.min(state.room(stream, now));
        let Some(it) = state.streams.get_mut(stream).filter(|_| limit > 0) else { return Ok(None) };
        let count = it.ring.fill(limit, source)?;
        if count > 0 {
            state.used = now;
        }
        drop(state);
        if count > 0 {
            self.changed.notify_waiters();
        }
        Ok(Some(count))
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
        let mut state = self.lock();
        state.exit = Some(exit);
        state.used = Instant::now();
        drop(state);
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

    fn wake_pumps(&self) {
        for room in &self.room {
            room.notify_one();
        }
    }
}

impl State {
    fn hold(&self, now: Instant) -> Option<Hold> {
        self.hold.filter(|hold| hold.until > now)
    }

    /// How many bytes of a stream are still to come to its slowest reader, if there is any.
    fn behind(&self, stream: usize, now: Instant) -> Option<u64> {
        let positions = self.readers.iter().map(|reader| reader.positions);
        let slowest = positions
            .chain(self.hold(now).map(|hold| hold.positions))
            .filter_map(|positions| positions.get(stream).copied())
            .min()?;
        Some(self.streams.get(stream)?.ring.head().saturating_sub(slowest))
    }

    /// How many bytes may be written to a stream at once.
    fn room(&self, stream: usize, now: Instant) -> usize {
        let Some(capacity) = self.streams.get(stream).map(|it| it.ring.capacity()) else { return 0 };
        let live = LIVE.min(capacity as u64);
        live.saturating_sub(self.behind(stream, now).unwrap_or(0)).min(CHUNK as u64) as usize
    }

    /// Whether a ring begins to drop what it could keep if it were larger.
    fn wants_more(&self, stream: usize) -> bool {
        let ring = self.streams.get(stream).map(|it| &it.ring);
        ring.is_some_and(|it| it.held() == it.capacity() && it.capacity() < MOST)
    }

    /// Bytes held of a stream that a reader still has to get.
    fn owed(&self, stream: usize, now: Instant) -> usize {
        let held = self.streams.get(stream).map_or(0, |it| it.ring.held() as u64);
        self.behind(stream, now).unwrap_or(0).min(held) as usize
    }

    /// Leaves a stream `capacity` bytes, or more if they are owed to a reader; returns how many.
    fn cut(&mut self, stream: usize, capacity: usize, now: Instant) -> usize {
        let capacity = capacity.max(self.owed(stream, now));
        if let Some(it) = self.streams.get_mut(stream)
            && capacity < it.ring.footprint()
        {
            it.ring.resize(capacity);
        }
        capacity
    }
}

#[cfg(test)]
mod tests;
