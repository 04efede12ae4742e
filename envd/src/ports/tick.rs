//! The one timer of an idle guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

use crate::channel;

/// A timer of the kernel's. One of the runtime's wakes the guest twice a second: its wheel turns once more shortly
/// before the time has come.
#[derive(Debug)]
pub struct Tick {
    timer: TimerFd,
    ready: AsyncFd<OwnedFd>,
}

impl Tick {
    /// # Errors
    /// Descriptors have run out.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let ready = channel::watch(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, ready })
    }

    /// Waits. Given up and begun again, it starts from the beginning.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn after(&self, time: Duration) -> io::Result<()> {
        self.timer.set(Expiration::OneShot(TimeSpec::from(time)), TimerSetTimeFlags::empty())?;
        loop {
            let mut ready = self.ready.readable().await?;
            match self.timer.wait() {
                // Left over from a wait that was given up.
                Err(Errno::EAGAIN) => ready.clear_ready(),
                result => return Ok(result?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn it_waits_as_long_as_asked_also_after_a_wait_that_was_given_up() {
        let tick = Tick::new().expect("a timer");
        for _ in 0..3 {
            tick.after(Duration::from_millis(1)).await.expect("a millisecond");
            // Whether it was over before it was given up depends on the machine.
            let _ = tokio::time::timeout(Duration::ZERO, tick.after(Duration::from_nanos(1))).await;
            let begun = Instant::now();
            tick.after(Duration::from_millis(20)).await.expect("longer");
            assert!(begun.elapsed() >= Duration::from_millis(20));
        }
    }
}
