//! The two ways a process is connected to envd: three pipes, or one terminal.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{F_SETFL, OFlag, fcntl};
use nix::pty::Winsize;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

/// envd's end of a pipe or terminal: not blocking, close-on-exec, known to the runtime.
pub type Parent = Arc<AsyncFd<OwnedFd>>;

/// A process's three pipes.
#[derive(Debug)]
pub struct Pipes {
    /// Absent if the process reads `/dev/null`.
    pub stdin: Option<Parent>,
    pub stdout: Parent,
    pub stderr: Parent,
    child: [OwnedFd; 3],
}

impl Pipes {
    /// # Errors
    /// Out of descriptors or memory.
    pub fn open(with_input: bool) -> io::Result<Self> {
        let (stdin_child, stdin) = if with_input {
            let (child, parent) = pipe()?;
            (child, Some(watched(parent)?))
        } else {
            (OpenOptions::new().read(true).open("/dev/null")?.into(), None)
        };
        let (stdout, stdout_child) = pipe()?;
        let (stderr, stderr_child) = pipe()?;
        Ok(Self {
            stdin,
            stdout: watched(stdout)?,
            stderr: watched(stderr)?,
            child: [stdin_child, stdout_child, stderr_child],
        })
    }

    /// What the process gets as 0, 1 and 2.
    pub fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        self.child.each_ref().map(AsFd::as_fd)
    }
}

/// The terminal of a process, as long as envd holds it.
#[derive(Debug)]
pub struct Terminal {
    pub master: Parent,
}

impl Terminal {
    /// A new terminal that belongs to the user, and the end that the process gets.
    ///
    /// # Errors
    /// The system has no more of them, or none at all.
    pub fn open(size: &Winsize, owner: u32) -> io::Result<(Self, OwnedFd)> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = nix::pty::posix_openpt(flags)?;
        nix::pty::unlockpt(&master)?;
        // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor that nobody else owns.
        let slave = unsafe {
            let fd = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits());
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // So that a user who is not root can open /dev/tty by its name; works without for most programs.
        let _ = nix::unistd::fchown(&slave, Some(owner.into()), None);
        let terminal = Self { master: watched(OwnedFd::from(master))? };
        terminal.resize(size)?;
        Ok((terminal, slave))
    }

    /// Sets the size, of which the kernel tells the foreground programs by SIGWINCH.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, size: &Winsize) -> io::Result<()> {
        // SAFETY: TIOCSWINSZ reads one winsize.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The size as it is, also where a program in the terminal has set it.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn size(&self) -> io::Result<Winsize> {
        let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ writes one winsize.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(size) }
    }
}

/// The reading and the writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

fn watched(fd: OwnedFd) -> io::Result<Parent> {
    fcntl(&fd, F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(Arc::new(watch(fd)?))
}

/// Registers a descriptor with the runtime's poll.
///
/// # Errors
/// The kernel has no room for it; the descriptor comes back with the reason.
pub fn watch(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, AsyncFdRegisterError<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same for as long as it lives, and nothing here replaces it.
    unsafe { AsyncFd::register(fd) }
}
