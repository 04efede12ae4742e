//! Moves what a process writes from its pipe or terminal into its ring.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::output::{Output, Room};

/// How long after its exit a process's output is waited for when something else still holds the pipe
/// open: a program it left in the background must not keep an `exec` from ending. What was in the pipe
/// at the exit is delivered however long that takes.
pub const LINGER: Duration = Duration::from_millis(200);

/// One stream of one process, on its way into the ring.
#[derive(Debug)]
pub struct Pump {
    pub source: Arc<AsyncFd<OwnedFd>>,
    pub output: Arc<Output>,
    pub stream: usize,
    /// Cancelled when the process has exited.
    pub exited: CancellationToken,
}

impl Pump {
    /// Runs until nothing holds the other end open any more. The stream ends earlier, [`LINGER`] after
    /// the exit; what comes later is drained and dropped, so that a background program neither blocks nor
    /// dies of a closed pipe.
    pub async fn run(self) {
        let closed = self.follow().await;
        self.output.end(self.stream);
        if !closed {
            self.discard().await;
        }
    }

    /// True at the end of file, false if the stream was given up after the exit.
    async fn follow(&self) -> bool {
        // The offset up to which the stream was in the pipe when the process exited.
        let mut owed = None;
        let mut deadline: Option<Instant> = None;
        loop {
            let room = self.wait_for_room().await;
            if self.exited.is_cancelled() && deadline.is_none() {
                let written = self.output.written(self.stream);
                let owed = *owed.get_or_insert_with(|| written.saturating_add(self.waiting()));
                if written >= owed {
                    deadline = Some(Instant::now() + LINGER);
                }
            }
            let ready = tokio::select! {
                biased;
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return false,
                ready = self.source.readable() => ready,
                () = self.exited.cancelled(), if owed.is_none() => continue,
            };
            let Ok(mut ready) = ready else { return true };
            let read =
                ready.try_io(|fd| self.output.fill(self.stream, room, |slot| read(fd.get_ref(), slot)));
            match read {
                // Not ready after all, or no room any more.
                Err(_) | Ok(Ok(None)) => {}
                Ok(Ok(Some(0))) => return true,
                // Let readers have it before more is taken: one flood must not starve the rest.
                Ok(Ok(Some(_))) => tokio::task::yield_now().await,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // EIO is how a terminal says that its last user is gone.
                Ok(Err(_)) => return true,
            }
        }
    }

    async fn wait_for_room(&self) -> usize {
        loop {
            let until = match self.output.room(self.stream) {
                Room::Bytes(bytes) => return bytes,
                Room::None { until } => until,
            };
            tokio::select! {
                () = self.output.room_changed(self.stream) => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    /// Bytes in the pipe.
    fn waiting(&self) -> u64 {
        let mut count: libc::c_int = 0;
        // SAFETY: FIONREAD stores one int.
        let result = unsafe { libc::ioctl(self.source.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        if result < 0 { 0 } else { u64::try_from(count).unwrap_or(0) }
    }

    async fn discard(&self) {
        let mut scrap = vec![0; 16 * 1024];
        while let Ok(mut ready) = self.source.readable().await {
            match ready.try_io(|fd| read(fd.get_ref(), &mut scrap)) {
                Ok(Ok(0)) => return,
                Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => tokio::task::yield_now().await,
            }
        }
    }
}

fn read(fd: &OwnedFd, slot: &mut [u8]) -> io::Result<usize> {
    nix::unistd::read(fd, slot).map_err(|errno: Errno| io::Error::from(errno))
}
