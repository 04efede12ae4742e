//! How a process ended, and the names of signals.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signal::Signal;
use wrenn_proto::envd::v1::ProcessExited;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    /// The number of the signal that killed it.
    Signal(i32),
}

impl Exit {
    /// The exit code, of a process that was not killed.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(_) => None,
        }
    }

    /// The name of the signal that killed it, as `SIGKILL`.
    pub fn signal(self) -> Option<String> {
        match self {
            Self::Code(_) => None,
            // Real-time signals have numbers only.
            Self::Signal(number) => Some(
                Signal::try_from(number).map_or_else(|_| format!("SIG{number}"), |it| it.as_str().to_owned()),
            ),
        }
    }

    /// As the last event of a stream.
    pub fn to_event(self) -> ProcessExited {
        ProcessExited { exit_code: self.code(), signal: self.signal(), cause: None }
    }
}

/// Takes the status of a child, after which its pid may be used again. Nothing if it still runs.
///
/// # Errors
/// It is not our child, or was reaped before.
pub fn reap(pidfd: &OwnedFd) -> io::Result<Option<Exit>> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: all-zero is a valid siginfo, which waitid fills; after a success without a child it stays
    // zero, and with one its pid and status fields are the valid ones.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        if libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(match (info.si_pid(), info.si_code) {
            (0, _) => None,
            (_, libc::CLD_EXITED) => Some(Exit::Code(info.si_status())),
            _ => Some(Exit::Signal(info.si_status())),
        })
    }
}

/// The signal of a name that may be sent to a process.
pub fn signal_named(name: &str) -> Option<Signal> {
    const ALLOWED: [Signal; 10] = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGKILL,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTERM,
        Signal::SIGCONT,
        Signal::SIGSTOP,
        Signal::SIGWINCH,
    ];
    ALLOWED.into_iter().find(|it| it.as_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(signal_named("SIGTERM"), Some(Signal::SIGTERM));
        for unknown in ["TERM", "sigterm", "SIGCHLD", "15", ""] {
            assert_eq!(signal_named(unknown), None, "{unknown}");
        }
        assert_eq!(Exit::Signal(9).signal().as_deref(), Some("SIGKILL"));
        assert_eq!(Exit::Signal(40).signal().as_deref(), Some("SIG40"));
        assert_eq!((Exit::Code(7).code(), Exit::Code(7).signal()), (Some(7), None));
    }
}
