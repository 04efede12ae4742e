//! Standard input: in order and exactly once, whatever the callers repeat or abandon.
//!
//! ```text
//!   write(sequence, data) ──▶ accepted ──▶ written
//!       any number of callers   queue       one task owns the descriptor
//! ```
//!
//! Every byte has an offset. A caller hands over the bytes whose turn it is, as far as the queue has room,
//! and waits until its last one is in the pipe. A caller that gives up half way leaves `accepted` exactly
//! where the queue ends; its repeat goes on from there.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Bytes accepted and not yet written, at most.
const QUEUE: u64 = 64 * 1024;
/// How long the part before a gap is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The input of one process, beside the task that writes it.
#[derive(Debug)]
pub struct Input {
    state: Mutex<State>,
    /// Callers wait here for their turn, for room, and for their bytes to be written.
    changed: Notify,
    /// The writer waits here for something to do.
    work: Notify,
}

#[derive(Debug, Default)]
struct State {
    accepted: u64,
    written: u64,
    queue: BytesMut,
    /// No byte after `accepted` will be taken; the descriptor is closed when the queue is empty.
    closing: bool,
    /// The descriptor is closed.
    closed: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    #[error("input is closed after {accepted} bytes")]
    Closed { accepted: u64 },
    #[error("input continues at offset {expected}, not at {got}")]
    Gap { expected: u64, got: u64 },
}

enum Turn {
    Done(u64),
    /// An earlier part is missing.
    Early,
    /// The queue is full, or the writer is not through.
    Later,
}

impl Input {
    /// An input that starts with `first`, whatever its length.
    pub fn new(first: &Bytes) -> Self {
        let state =
            State { accepted: first.len() as u64, queue: BytesMut::from(first.as_ref()), ..State::default() };
        Self { state: Mutex::new(state), changed: Notify::new(), work: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `data`, whose first byte has the offset `sequence`; what was accepted before is skipped.
    /// Returns the offset the next input must have, once everything before it is in the pipe.
    ///
    /// # Errors
    /// The input is closed, or the bytes before `sequence` did not come in time.
    pub async fn write(&self, sequence: u64, data: &Bytes) -> Result<u64, InputError> {
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.turn(sequence, data)? {
                Turn::Done(next) => return Ok(next),
                Turn::Later => changed.await,
                Turn::Early => tokio::select! {
                    () = changed => {}
                    () = sleep_until(deadline) => {
                        let state = self.lock();
                        // While the pipe is full the missing part may be waiting for room itself.
                        if state.accepted < sequence && state.accepted == state.written {
                            return Err(InputError::Gap { expected: state.accepted, got: sequence });
                        }
                        deadline = Instant::now() + PATIENCE;
                    }
                },
            }
        }
    }

    fn turn(&self, sequence: u64, data: &Bytes) -> Result<Turn, InputError> {
        let mut state = self.lock();
        let end = sequence.saturating_add(data.len() as u64);
        if state.written >= end {
            return Ok(Turn::Done(state.accepted));
        }
        if state.closed || (state.closing && state.accepted < end) {
            return Err(InputError::Closed { accepted: state.accepted });
        }
        if sequence > state.accepted {
            return Ok(Turn::Early);
        }
        let room = QUEUE.saturating_sub(state.accepted - state.written);
        let take = room.min(end.saturating_sub(state.accepted)) as usize;
        let skip = (state.accepted - sequence) as usize;
        if take > 0
            && let Some(part) = data.get(skip..skip.saturating_add(take))
        {
            state.queue.extend_from_slice(part);
            state.accepted += part.len() as u64;
            drop(state);
            self.work.notify_one();
            self.changed.notify_waiters();
        }
        Ok(Turn::Later)
    }

    /// End of file after what was accepted. Returns the offset of the end.
    pub fn close(&self) -> u64 {
        let mut state = self.lock();
        state.closing = true;
        let accepted = state.accepted;
        drop(state);
        self.work.notify_one();
        self.changed.notify_waiters();
        accepted
    }

    /// The process is gone or has closed its end: nobody waits any longer.
    pub fn abandon(&self) {
        self.lock().closed = true;
        self.work.notify_one();
        self.changed.notify_waiters();
    }

    /// Writes what is accepted into `target`, until the input is closed or abandoned.
    pub async fn run(&self, target: Arc<AsyncFd<OwnedFd>>) {
        while let Some(mut batch) = self.next_batch().await {
            while batch.has_remaining() {
                match self.write_some(&target, &batch).await {
                    Some(count) => {
                        batch.advance(count.min(batch.remaining()));
                        self.lock().written += count as u64;
                        self.changed.notify_waiters();
                    }
                    None => return self.abandon(),
                }
            }
        }
        self.abandon();
    }

    /// Everything accepted so far, as soon as there is something.
    async fn next_batch(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                if !state.queue.is_empty() {
                    return Some(std::mem::take(&mut state.queue).freeze());
                }
                if state.closing {
                    return None;
                }
            }
            self.work.notified().await;
        }
    }

    /// The number of bytes written, or nothing if the other end is closed.
    async fn write_some(&self, target: &AsyncFd<OwnedFd>, data: &[u8]) -> Option<usize> {
        loop {
            let ready = tokio::select! {
                ready = target.writable() => ready,
                () = self.work.notified() => {
                    if self.lock().closed {
                        return None;
                    }
                    continue;
                }
            };
            match ready.ok()?.try_io(|fd| nix::unistd::write(fd.get_ref(), data).map_err(Into::into)) {
                Ok(Ok(count)) => return Some(count),
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return None,
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use std::io::Read;

    /// An input with its writer at work, and the end a process would read from.
    fn piped(first: &'static [u8]) -> (Arc<Input>, std::fs::File) {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("pipe");
        nix::fcntl::fcntl(&writer, nix::fcntl::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
        let input = Arc::new(Input::new(&Bytes::from_static(first)));
        let target = Arc::new(crate::channel::watch(writer).expect("register"));
        tokio::spawn({
            let input = Arc::clone(&input);
            async move { input.run(target).await }
        });
        (input, reader.into())
    }

    async fn read_all(mut reader: std::fs::File) -> Vec<u8> {
        tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        })
        .await
        .expect("join")
        .expect("read")
    }

    #[tokio::test]
    async fn repeats_and_overlaps_are_written_once() {
        let (input, reader) = piped(b"ab");
        assert_eq!(input.write(2, &Bytes::from_static(b"cd")).await, Ok(4));
        assert_eq!(input.write(2, &Bytes::from_static(b"cd")).await, Ok(4));
        assert_eq!(input.write(0, &Bytes::from_static(b"abcdef")).await, Ok(6));
        assert_eq!(input.write(6, &Bytes::new()).await, Ok(6));
        assert_eq!(input.close(), 6);
        assert_eq!(input.close(), 6);
        assert_eq!(read_all(reader).await, b"abcdef");
        assert_eq!(input.write(4, &Bytes::from_static(b"ef")).await, Ok(6), "a late repeat is still fine");
        let more = input.write(6, &Bytes::from_static(b"g")).await;
        assert_eq!(more, Err(InputError::Closed { accepted: 6 }));
    }

    #[tokio::test]
    async fn concurrent_writers_come_out_in_order() {
        let (input, reader) = piped(b"");
        let all: Vec<u8> = (0..400_000u32).map(|it| (it % 251) as u8).collect();
        let data = Bytes::from(all.clone());
        let mut calls = tokio::task::JoinSet::new();
        for index in (0..40).rev() {
            let (input, from) = (Arc::clone(&input), index * 10_000usize);
            // Each overlaps the next one's bytes.
            let part = data.slice(from..(from + 13_000).min(data.len()));
            calls.spawn(async move { input.write(from as u64, &part).await });
        }
        let reading = tokio::spawn(read_all(reader));
        while let Some(result) = calls.join_next().await {
            result.expect("join").expect("written");
        }
        input.close();
        assert_eq!(reading.await.expect("join"), all);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_waited_for_and_then_refused() {
        let (input, _reader) = piped(b"");
        let started = Instant::now();
        let refused = input.write(3, &Bytes::from_static(b"x")).await;
        assert_eq!(refused, Err(InputError::Gap { expected: 0, got: 3 }));
        assert!(started.elapsed() >= PATIENCE);
    }

    #[tokio::test]
    async fn an_abandoned_call_loses_and_repeats_nothing() {
        let (input, reader) = piped(b"");
        let all: Vec<u8> = (0..300_000u32).map(|it| (it % 241) as u8).collect();
        let data = Bytes::from(all.clone());
        // More than pipe and queue hold: this waits until it is dropped.
        let call = input.write(0, &data);
        assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
        let reading = tokio::spawn(read_all(reader));
        assert_eq!(input.write(0, &data).await, Ok(300_000));
        input.close();
        assert_eq!(reading.await.expect("join"), all);
    }

    #[tokio::test]
    async fn a_closed_reader_fails_those_who_wait() {
        let (input, reader) = piped(b"");
        let data = Bytes::from(vec![0; 300_000]);
        let (result, ()) = tokio::join!(input.write(0, &data), async { drop(reader) });
        assert!(matches!(result, Err(InputError::Closed { .. })));
    }
}
