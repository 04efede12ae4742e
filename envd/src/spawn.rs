//! Starting a program without copying this process.
//!
//! The child borrows envd's memory until it has become the program (`CLONE_VM | CLONE_VFORK`), so that no
//! page table is copied and no page of envd faults afterwards, which is most of the price of a first `exec`
//! in an emulated guest. In between it may only make system calls: no allocation, no lock, no panic, and
//! nothing of libc that keeps state per thread other than `errno`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use std::os::fd::AsFd;

/// Stack of the child between `clone` and `execve`; the deepest path there takes a few hundred bytes.
const CHILD_STACK: usize = 32 * 1024;

/// Who the program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// Everything the child needs, made ready before it exists.
#[derive(Debug)]
pub struct Program<'a> {
    pub path: &'a CStr,
    pub argv: &'a [CString],
    /// `NAME=value` each.
    pub env: &'a [CString],
    pub cwd: &'a CStr,
    /// Absent: as envd itself.
    pub credentials: Option<&'a Credentials>,
    /// What becomes descriptors 0, 1 and 2. All others are closed.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Descriptor 0 is a terminal and becomes the one that controls the session.
    pub terminal: bool,
    /// Undo envd's own protection from the kernel's out-of-memory killer.
    pub expendable: bool,
}

/// A program that was started. Its pid is also its session and process group.
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    /// Refers to this very process, whatever becomes of the number; close-on-exec.
    pub pidfd: OwnedFd,
}

/// What a child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Clone,
    Session,
    Stdio,
    Credentials,
    WorkingDirectory,
    Program,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {}", match .step {
    Step::Clone => "make a process",
    Step::Session => "begin a session",
    Step::Stdio => "set up standard input and output",
    Step::Credentials => "become the user",
    Step::WorkingDirectory => "enter the working directory",
    Step::Program => "execute the program",
})]
pub struct SpawnError {
    pub step: Step,
    #[source]
    pub source: io::Error,
}

/// The child's view. Plain pointers into memory that the parent keeps alive, since it sleeps meanwhile.
struct Child {
    path: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    credentials: Option<ChildCredentials>,
    stdio: [RawFd; 3],
    terminal: bool,
    expendable: bool,
    ignored: *const c_int,
    ignored_len: usize,
    failure: Option<(Step, c_int)>,
}

struct ChildCredentials {
    uid: u32,
    gid: u32,
    groups: *const u32,
    groups_len: usize,
}

/// Starts `program`; returns once it runs, or failed to.
///
/// # Errors
/// Names the step that failed, with the kernel's reason. Nothing of the child is left then.
pub fn spawn(program: &Program<'_>) -> Result<Spawned, SpawnError> {
    let argv = null_terminated(program.argv);
    let env = null_terminated(program.env);
    let ignored = ignored_signals();
    let mut child = Child {
        path: program.path.as_ptr(),
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        cwd: program.cwd.as_ptr(),
        credentials: program.credentials.map(|it| ChildCredentials {
            uid: it.uid,
            gid: it.gid,
            groups: it.groups.as_ptr(),
            groups_len: it.groups.len(),
        }),
        stdio: program.stdio.map(|fd| fd.as_raw_fd()),
        terminal: program.terminal,
        expendable: program.expendable,
        ignored: ignored.as_ptr(),
        ignored_len: ignored.len(),
        failure: None,
    };
    let (pid, pidfd) = clone(&mut child).map_err(|source| SpawnError { step: Step::Clone, source })?;
    // The child wrote through a pointer the compiler lost sight of.
    // SAFETY: `child` is initialised and aligned; the child process is past its last write.
    let failure = unsafe { ptr::read_volatile(&raw const child.failure) };
    match failure {
        None => Ok(Spawned { pid, pidfd }),
        Some((step, errno)) => {
            // It has already called _exit; only its status is left to be taken.
            let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
            Err(SpawnError { step, source: io::Error::from_raw_os_error(errno) })
        }
    }
}

/// Signals that envd ignores and a program must not (Rust's runtime ignores SIGPIPE). Handlers need no
/// such care: `execve` resets them.
pub fn ignored_signals() -> &'static [c_int] {
    static IGNORED: OnceLock<Vec<c_int>> = OnceLock::new();
    IGNORED.get_or_init(|| {
        (1..=libc::SIGRTMAX())
            .filter(|&signal| {
                // SAFETY: all-zero is a valid sigaction, and only the current action is asked for.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    libc::sigaction(signal, ptr::null(), &raw mut action) == 0
                        && action.sa_sigaction == libc::SIG_IGN
                }
            })
            .collect()
    })
}

fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|it| it.as_ptr()).chain([ptr::null()]).collect()
}

fn clone(child: &mut Child) -> io::Result<(u32, OwnedFd)> {
    let mut stack = vec![0u128; CHILD_STACK / 16];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;

    // A handler running in the child would run in envd's memory.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: the stack is ours alone, 16-byte aligned and outlives the child's use of it, because
    // CLONE_VFORK suspends this thread until the child has executed or exited; `become_program` keeps the
    // rules at the top of this module; `child` and `pidfd` outlive the call.
    let pid = unsafe {
        libc::clone(become_program, top, flags, ptr::from_mut(child).cast::<c_void>(), &raw mut pidfd)
    };
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    drop(stack);
    let pid = u32::try_from(result?).map_err(io::Error::other)?;
    // SAFETY: with CLONE_PIDFD a successful clone stored a new descriptor there that nobody else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Runs in the child, on its own stack, in envd's memory.
extern "C" fn become_program(child: *mut c_void) -> c_int {
    // SAFETY: `clone` passes the `Child` it was given, and the parent does not touch it meanwhile.
    let child = unsafe { &mut *child.cast::<Child>() };
    let step = attempt(child);
    // SAFETY: reads this thread's errno; `_exit` runs no handlers, which would be the parent's.
    unsafe {
        child.failure = Some((step, *libc::__errno_location()));
        libc::_exit(127)
    }
}

/// Does each step in turn; returns the one that failed, with `errno` set.
fn attempt(child: &Child) -> Step {
    // SAFETY: only system calls on descriptors and strings that the parent keeps alive. Those that libc
    // would spread over all threads of envd (the ids) are made directly.
    unsafe {
        if libc::setsid() < 0 {
            return Step::Session;
        }
        for (target, source) in (0..).zip(child.stdio) {
            if libc::dup2(source, target) < 0 {
                return Step::Stdio;
            }
        }
        if child.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return Step::Session;
        }
        libc::umask(0o022);
        if child.expendable {
            let adjust = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if adjust >= 0 {
                libc::write(adjust, c"0".as_ptr().cast(), 1);
            }
        }
        if let Some(user) = &child.credentials
            && (libc::syscall(libc::SYS_setgroups, user.groups_len, user.groups) < 0
                || libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) < 0
                || libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) < 0)
        {
            return Step::Credentials;
        }
        if libc::chdir(child.cwd) < 0 {
            return Step::WorkingDirectory;
        }
        // Everything is opened close-on-exec; this catches what envd itself was started with. A kernel
        // older than 5.11 refuses, and then there is just that.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for index in 0..child.ignored_len {
            libc::signal(*child.ignored.add(index), libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::execve(child.path, child.argv, child.env);
    }
    Step::Program
}
