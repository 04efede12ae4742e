//! A VMM's process: who it is, that it is still the same one, and when it ends. It may be our child
//! or, after a restart of the host's agent, nobody's; both are watched through a pidfd.

pub mod cgroup;
mod identity;
pub(crate) mod jail;
pub(crate) mod launch;
pub(crate) mod output;
pub(crate) mod tool;

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

pub use self::identity::ProcessIdentity;
pub(crate) use self::identity::boot_id;
use crate::failure::{Doing as _, Failure};

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("process {0} is gone")]
    Gone(i32),
    /// The kernel has given the number to another process.
    #[error("process {pid} is not the recorded one: {difference}")]
    NotTheSame { pid: i32, difference: String },
    #[error(transparent)]
    Io(#[from] Failure),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessExit {
    Code(i32),
    Signal(i32),
    /// It was not our child, the kernel does not tell.
    Unknown,
}

impl fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
            Self::Unknown => f.write_str("exit status unknown"),
        }
    }
}

/// A process that is certainly the recorded one: the pidfd was opened before the identity was checked.
/// Clones share it; dropping them leaves the process running.
#[derive(Clone, Debug)]
pub struct VmmProcess(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: ProcessIdentity,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<ProcessExit>>,
}

impl VmmProcess {
    /// Takes up a process that was started in another life of this program.
    pub fn adopt(identity: &ProcessIdentity) -> Result<Self, ProcessError> {
        let pidfd = open(identity.pid)?;
        identity.verify()?;
        Self::watch(identity.clone(), pidfd)
    }

    /// Takes charge of a child that was just started and has not been waited for.
    pub(crate) fn of_child(pid: i32) -> Result<Self, ProcessError> {
        let pidfd = open(pid)?;
        Self::watch(ProcessIdentity::of(pid)?, pidfd)
    }

    fn watch(identity: ProcessIdentity, pidfd: OwnedFd) -> Result<Self, ProcessError> {
        let doing = || format!("watching process {}", identity.pid);
        let watched = pidfd.try_clone().doing(doing)?;
        // SAFETY: the registration owns the descriptor, and does not let it be replaced.
        let watched = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }.doing(doing)?;
        let (sender, exit) = watch::channel(None);
        let pid = identity.pid;
        tokio::spawn(async move {
            let status = match watched.readable().await {
                Ok(_) => reap(watched.get_ref()),
                Err(error) => Err(error),
            };
            let status = status.unwrap_or_else(|error| {
                tracing::warn!(pid, %error, "the end of a VMM could not be read");
                ProcessExit::Unknown
            });
            // Nobody may be interested any more.
            let _ = sender.send(Some(status));
        });
        Ok(Self(Arc::new(Inner { identity, pidfd, exit })))
    }

    pub fn identity(&self) -> &ProcessIdentity {
        &self.0.identity
    }

    pub fn has_exited(&self) -> Option<ProcessExit> {
        *self.0.exit.borrow()
    }

    /// Waits for the end; any number may wait, and it answers at once when it is over.
    pub async fn exited(&self) -> ProcessExit {
        let mut exit = self.0.exit.clone();
        let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        match exit {
            Some(exit) => exit,
            // The watching task is only dropped with the runtime: nothing has ended.
            None => std::future::pending().await,
        }
    }

    /// Kills it, and waits until it is gone. Fine if it has gone already.
    pub async fn kill(&self) -> Result<ProcessExit, ProcessError> {
        self.signal_end()?;
        Ok(self.exited().await)
    }

    /// Kills it without waiting.
    fn signal_end(&self) -> Result<(), Failure> {
        send_signal(&self.0.pidfd, libc::SIGKILL).doing(|| format!("killing process {}", self.0.identity.pid))
    }
}

pub(crate) fn open(pid: i32) -> Result<OwnedFd, ProcessError> {
    // SAFETY: the call takes two integers; a non-negative result is a new descriptor that is ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ESRCH | libc::EINVAL) => ProcessError::Gone(pid),
            _ => Failure::new(format!("opening process {pid}"), error).into(),
        });
    }
    // SAFETY: as above; descriptors fit into an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let information = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null information pointer asks for what kill() would send.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, information, 0) };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads the exit status of an ended process, and frees its number if it was our child.
fn reap(pidfd: impl AsFd) -> io::Result<ProcessExit> {
    match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
        Ok(WaitStatus::Exited(_, code)) => Ok(ProcessExit::Code(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ok(ProcessExit::Signal(signal as i32)),
        Ok(_) | Err(Errno::ECHILD) => Ok(ProcessExit::Unknown),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A child that only the watch under test can reap.
    fn child(line: &str) -> i32 {
        Command::new("sh").args(["-c", line]).spawn().unwrap().id() as i32
    }

    /// Of a process that is `sleep`, or about to be.
    fn identity_of_sleep(pid: i32) -> ProcessIdentity {
        let sleep = tool::find("sleep").unwrap().canonicalize().unwrap();
        let begun = Instant::now();
        loop {
            let identity = ProcessIdentity::of(pid).unwrap();
            if identity.executable == sleep {
                return identity;
            }
            assert!(begun.elapsed() < PATIENCE, "it goes on to be {}", identity.executable.display());
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn a_child_that_is_killed_says_so_to_all_who_wait() {
        let process = VmmProcess::of_child(child("exec sleep 600")).unwrap();
        assert_eq!(process.has_exited(), None);
        let (one, two, killed) = tokio::join!(process.exited(), process.exited(), process.kill());
        assert_eq!((one, two), (ProcessExit::Signal(9), ProcessExit::Signal(9)));
        assert_eq!(killed.unwrap(), ProcessExit::Signal(9));
        assert_eq!(process.kill().await.unwrap(), ProcessExit::Signal(9), "again is fine");
    }

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "the watch under test reaps it")]
    async fn an_exit_code_is_reported() {
        // It waits for its input, so that it does not end before it is watched.
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", "read line; exit 7"]).stdin(Stdio::piped()).spawn().unwrap();
        let process = VmmProcess::of_child(child.id() as i32).unwrap();
        drop(child.stdin.take());
        assert_eq!(process.exited().await, ProcessExit::Code(7));
    }

    #[tokio::test]
    async fn a_stranger_of_the_same_number_is_neither_adopted_nor_killed() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = identity_of_sleep(child.id() as i32);
        VmmProcess::adopt(&identity).unwrap();

        let later = ProcessIdentity { start_time: identity.start_time + 1, ..identity.clone() };
        let other = ProcessIdentity { executable: "/usr/bin/qemu".into(), ..identity.clone() };
        let boot = ProcessIdentity { boot_id: "another".into(), ..identity.clone() };
        for stranger in [later, other, boot] {
            let error = VmmProcess::adopt(&stranger).unwrap_err();
            assert!(matches!(error, ProcessError::NotTheSame { .. } | ProcessError::Gone(_)), "{error}");
        }
        assert!(child.try_wait().unwrap().is_none(), "it lives on");

        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(VmmProcess::adopt(&identity), Err(ProcessError::Gone(_))));
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_is_not_a_child_is_noticed() {
        // The shell ends at once and leaves the sleeper to init.
        let output = Command::new("sh").args(["-c", "sleep 600 >/dev/null 2>&1 & echo $!"]).output().unwrap();
        let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let process = VmmProcess::adopt(&identity_of_sleep(pid)).unwrap();
        assert_eq!(process.kill().await.unwrap(), ProcessExit::Unknown);
    }
}
