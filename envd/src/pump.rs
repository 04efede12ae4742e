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
/// More than a terminal holds without saying so, in bytes. What nobody had room for may still be on its way: the time for
/// which there was none does not count for so much.
const UNTOLD: u64 = 64 * 1024;

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
        let mut owed: Option<u64> = None;
        let mut deadline: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            let room = self.wait_for_room().await;
            if owed.is_some_and(|owed| self.output.written(self.stream) < owed + UNTOLD) {
                deadline = deadline.map(|deadline| deadline + asked.elapsed());
            }
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::fcntl::OFlag;
    use nix::sys::termios;
    use wrenn_proto::envd::v1::OutputCursor;
    use wrenn_proto::envd::v1::process_event::Event;

    use super::*;
    use crate::channel::watch;
    use crate::exit::Exit;
    use crate::output::{LIVE, Next};

    /// More than a terminal says that it holds, and all of what it can hold.
    const WRITTEN: usize = 10_000;

    #[tokio::test]
    async fn a_terminal_s_end_reaches_a_reader_that_is_slower_than_the_patience_with_it() {
        let pair = nix::pty::openpty(None, None).expect("a terminal");
        let mut raw = termios::tcgetattr(&pair.slave).expect("attributes");
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&pair.slave, termios::SetArg::TCSANOW, &raw).expect("attributes");
        for end in [pair.master.as_fd(), pair.slave.as_fd()] {
            nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("flags");
        }
        assert_eq!(nix::unistd::write(&pair.slave, &[7; WRITTEN]).expect("room in the kernel"), WRITTEN);

        let output = Arc::new(Output::terminal(Duration::from_secs(30), &Arc::default()));
        let reader = output.attach(&OutputCursor::default()).expect("attach");
        let exited = CancellationToken::new();
        exited.cancel();
        output.set_exit(Exit::Code(0));
        let source = Arc::new(watch(pair.master).expect("ready"));
        let pump = Pump { source, output: Arc::clone(&output), stream: 0, exited };
        let said = pump.waiting();
        assert!((1..WRITTEN as u64).contains(&said), "the rest is where it is not counted: {said}");
        // Room for what it says, and a little: the patience begins, and then nothing moves until the reader does.
        fill(&output, LIVE - said - 100);
        let pump = tokio::spawn(pump.run());
        tokio::time::sleep(2 * LINGER).await;

        let mut arrived = 0;
        let all = async {
            loop {
                let changed = output.changed();
                match output.next(reader) {
                    Next::Event(Event::Output(it)) => {
                        arrived += it.data.iter().filter(|byte| **byte == 7).count();
                    }
                    Next::Event(other) => panic!("{other:?}"),
                    Next::Exited(_) => break,
                    Next::Wait => changed.await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("an end");
        assert_eq!(arrived, WRITTEN);
        pump.abort();
    }

    /// Writes so many zeros as if the process had.
    fn fill(output: &Output, count: u64) {
        while output.written(0) < count {
            let Room::Bytes(room) = output.room(0) else { panic!("a reader has fallen behind") };
            let left = usize::try_from(count - output.written(0)).expect("a size");
            output.fill(0, room.min(left), |slot| Ok::<_, io::Error>(slot.len())).expect("no error");
        }
    }
}
