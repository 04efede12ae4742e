//! What waits to be written to one socket.
//!
//! Control frames go first: the close, pings, pongs, then what the protocol itself answers. Behind them
//! every operation has a lane of its own, and the writer takes one frame of each lane in turn, so that an
//! operation with much to say delays the others by one frame of its own, never by its queue.
//!
//! An operation asks for [`Lane::room`] before it polls its stream. There is none while the lane holds
//! the limit in bytes or frames, which is all the back-pressure there is: a stream that is not polled
//! does not produce. A lane that ends by itself keeps its last word (`complete` or `error`) until the
//! frames before it are gone; it then goes ahead of all other lanes. A lane that is dropped takes its
//! frames with it.
//!
//! What has been written may still lie in buffers of the kernels and of the network, megabytes of it where
//! the peer is slow: a keystroke's echo would wait behind all that, and a peer that is killed loses it. So
//! every ping carries how many bytes of lanes were written before it, the pong to it brings that number back
//! once the peer has *read* so far, and lanes have to wait while [`LaneBounds::window`] bytes are unread.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::extract::ws::Utf8Bytes;
use tokio::{sync::Notify, time::Instant};

use super::{Close, state::OperationKey};

/// One thing to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Text(Utf8Bytes),
    /// With the bytes of lanes that were taken before it.
    Ping(u64),
    Close(Close),
}

/// How much a lane may hold before its operation has to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneBounds {
    pub(super) bytes: usize,
    pub(super) frames: usize,
    /// Bytes of all lanes together that the peer may have left unread. Exceeded by one frame at most.
    pub(super) window: usize,
}

/// So many times a window is asked how far the peer has read.
const MARKS: u64 = 4;

#[derive(Debug)]
pub(super) struct Outbox {
    bounds: LaneBounds,
    queues: Mutex<Queues>,
    filled: Notify,
}

#[derive(Debug)]
struct Queues {
    close: Option<Close>,
    closed: bool,
    ping: bool,
    pong: Option<Utf8Bytes>,
    control: VecDeque<Utf8Bytes>,
    lanes: HashMap<OperationKey, Queue>,
    /// Lanes that hold frames, in the order of their turns.
    turns: VecDeque<OperationKey>,
    /// Lanes that hold nothing but their last word.
    endings: VecDeque<OperationKey>,
    /// Operations whose last word was taken, until somebody asks.
    ended: Vec<OperationKey>,
    last_taken: Instant,
    /// Bytes of lanes that were taken; of these, those before the last ping, and those that the peer has read.
    taken: u64,
    asked: u64,
    read: u64,
}

#[derive(Debug)]
struct Queue {
    frames: VecDeque<Utf8Bytes>,
    bytes: usize,
    last: Option<Utf8Bytes>,
    /// Told about room and about the end of the lane; the operation is the only one who waits.
    changed: Arc<Notify>,
}

impl Outbox {
    pub(super) fn new(bounds: LaneBounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            queues: Mutex::new(Queues {
                close: None,
                closed: false,
                ping: false,
                pong: None,
                control: VecDeque::new(),
                lanes: HashMap::new(),
                turns: VecDeque::new(),
                endings: VecDeque::new(),
                ended: Vec::new(),
                last_taken: Instant::now(),
                taken: 0,
                asked: 0,
                read: 0,
            }),
            filled: Notify::new(),
        })
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        // Nothing in here is left half done by a panic.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the lane of an operation.
    pub(super) fn open(self: &Arc<Self>, key: OperationKey) -> Lane {
        let changed = Arc::new(Notify::new());
        let queue = Queue { frames: VecDeque::new(), bytes: 0, last: None, changed: Arc::clone(&changed) };
        let mut queues = self.queues();
        if !queues.closed {
            queues.lanes.insert(key, queue);
        }
        Lane { outbox: Arc::clone(self), key, changed }
    }

    /// Throws a lane away with all it holds.
    pub(super) fn discard(&self, key: OperationKey) {
        let mut queues = self.queues();
        if let Some(queue) = queues.lanes.remove(&key) {
            queues.turns.retain(|turn| *turn != key);
            queues.endings.retain(|ending| *ending != key);
            queue.changed.notify_one();
        }
    }

    /// The operations whose last word the writer has taken since this was asked last: their ids are free before the
    /// peer can have read it.
    pub(super) fn ended(&self) -> Vec<OperationKey> {
        std::mem::take(&mut self.queues().ended)
    }

    /// A ping, unless one still waits.
    pub(super) fn ping(&self) {
        self.queues().ping = true;
        self.filled.notify_one();
    }

    /// The peer has answered a ping that carried this.
    pub(super) fn confirm(&self, bytes: u64) {
        let mut queues = self.queues();
        // What was never said is not believed.
        queues.read = queues.read.max(bytes.min(queues.asked));
        drop(queues);
        self.filled.notify_one();
    }

    /// A pong, in place of one that still waits: as with WebSocket's own, the latest ping is answered.
    pub(super) fn pong(&self, text: Utf8Bytes) {
        self.queues().pong = Some(text);
        self.filled.notify_one();
    }

    /// An answer of the protocol itself. Tells how many now wait.
    pub(super) fn control(&self, text: Utf8Bytes) -> usize {
        let mut queues = self.queues();
        queues.control.push_back(text);
        let waiting = queues.control.len();
        drop(queues);
        self.filled.notify_one();
        waiting
    }

    /// Throws away all that waits; only the close is still written.
    pub(super) fn close(&self, close: Option<Close>) {
        let mut queues = self.queues();
        queues.closed = true;
        queues.close = close;
        queues.ping = false;
        queues.pong = None;
        queues.control.clear();
        queues.turns.clear();
        queues.endings.clear();
        for (_, queue) in queues.lanes.drain() {
            queue.changed.notify_one();
        }
        drop(queues);
        self.filled.notify_one();
    }

    /// When the writer last took a frame, if others wait since.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let queues = self.queues();
        let waiting = !(queues.control.is_empty() && queues.turns.is_empty() && queues.endings.is_empty());
        waiting.then_some(queues.last_taken)
    }

    /// The next frame that is there now.
    pub(super) fn take(&self) -> Option<Frame> {
        let mut queues = self.queues();
        let frame = queues.take(self.bounds);
        if frame.is_some() {
            queues.last_taken = Instant::now();
        }
        frame
    }

    /// The next frame; `None` once the outbox is closed and empty. For the one writer.
    pub(super) async fn next(&self) -> Option<Frame> {
        loop {
            let frame = self.take();
            if frame.is_some() || self.queues().closed {
                return frame;
            }
            self.filled.notified().await;
        }
    }
}

impl Queues {
    fn take(&mut self, bounds: LaneBounds) -> Option<Frame> {
        if let Some(close) = self.close.take() {
            return Some(Frame::Close(close));
        }
        let window = bounds.window as u64;
        if std::mem::take(&mut self.ping) || (self.taken - self.asked) * MARKS >= window.max(1) {
            self.asked = self.taken;
            return Some(Frame::Ping(self.taken));
        }
        if let Some(text) = self.pong.take().or_else(|| self.control.pop_front()) {
            return Some(Frame::Text(text));
        }
        if let Some(key) = self.endings.pop_front()
            && let Some(queue) = self.lanes.remove(&key)
        {
            self.ended.push(key);
            queue.changed.notify_one();
            return queue.last.map(Frame::Text);
        }
        if self.taken - self.read >= window {
            return None;
        }
        let key = self.turns.pop_front()?;
        let queue = self.lanes.get_mut(&key)?;
        let frame = queue.frames.pop_front()?;
        queue.bytes -= frame.len();
        self.taken += frame.len() as u64;
        if queue.has_room(bounds) {
            queue.changed.notify_one();
        }
        if !queue.frames.is_empty() {
            self.turns.push_back(key);
        } else if queue.last.is_some() {
            self.endings.push_back(key);
        }
        Some(Frame::Text(frame))
    }
}

impl Queue {
    fn has_room(&self, bounds: LaneBounds) -> bool {
        self.bytes < bounds.bytes && self.frames.len() < bounds.frames
    }
}

/// Where one operation puts its frames. Dropping it throws away what it still holds.
#[derive(Debug)]
pub(super) struct Lane {
    outbox: Arc<Outbox>,
    key: OperationKey,
    changed: Arc<Notify>,
}

impl Lane {
    /// Waits until the lane may take another frame. False: the lane is gone, nobody listens any more.
    pub(super) async fn room(&self) -> bool {
        loop {
            match self.outbox.queues().lanes.get(&self.key) {
                None => return false,
                Some(queue) if queue.has_room(self.outbox.bounds) => return true,
                Some(_) => {}
            }
            self.changed.notified().await;
        }
    }

    /// Queues a frame, whatever its size: [`Self::room`] has been asked before it was made.
    pub(super) fn push(&self, text: Utf8Bytes) {
        let mut queues = self.outbox.queues();
        let Some(queue) = queues.lanes.get_mut(&self.key) else { return };
        queue.bytes += text.len();
        queue.frames.push_back(text);
        if queue.frames.len() == 1 {
            queues.turns.push_back(self.key);
        }
        drop(queues);
        self.outbox.filled.notify_one();
    }

    /// Queues the last word and waits until the writer has taken it.
    pub(super) async fn finish(self, last: Utf8Bytes) {
        {
            let mut queues = self.outbox.queues();
            let Some(queue) = queues.lanes.get_mut(&self.key) else { return };
            queue.last = Some(last);
            if queue.frames.is_empty() {
                queues.endings.push_back(self.key);
            }
        }
        self.outbox.filled.notify_one();
        while self.outbox.queues().lanes.contains_key(&self.key) {
            self.changed.notified().await;
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.outbox.discard(self.key);
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
