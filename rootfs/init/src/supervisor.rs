//! Process 1's life: one child of its own, everybody's orphans, and the end of the machine.
//!
//! ```text
//!            start failed, or it ended
//!   running ───────────────────────────▶ waiting (backoff)
//!      ▲  ▲                                 │
//!      │  └─────────────────────────────────┘ backoff over: start again
//!      │
//!   SIGCHLD: reap whoever ended      SIGHUP SIGUSR1 SIGUSR2 SIGQUIT: passed on to the child
//!
//!   any ── SIGTERM, SIGPWR ──▶ power off        any ── SIGINT ──▶ reboot
//! ```
//! It sleeps in one system call until a signal comes or a backoff ends; an idle guest stays idle.

use std::{
    io,
    mem::MaybeUninit,
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, setsid, sync},
};

use crate::failure::{Failure, report};

/// The guest daemon, the only program started here.
const ENVD: &str = "/usr/local/bin/envd";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// A child that lived this long was well: the next backoff is short again.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// What processes get to end by themselves when the machine ends.
const GRACE: Duration = Duration::from_secs(2);

/// What process 1 waits for. All are blocked, so none is lost between two waits.
const AWAITED: [Signal; 8] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGPWR,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

enum Envd {
    Running { pid: Pid, since: Instant },
    Waiting { until: Instant },
}

pub struct Supervisor {
    signals: SigSet,
    envd: Envd,
    backoff: Duration,
}

impl Supervisor {
    pub fn new() -> Self {
        let signals = SigSet::from_iter(AWAITED);
        Self { signals, envd: Envd::Waiting { until: Instant::now() }, backoff: FIRST_BACKOFF }
    }

    /// Runs until the machine ends; returns only if the kernel refuses to end it.
    pub fn run(mut self) -> ExitCode {
        if let Err(errno) = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&self.signals), None) {
            report(&Failure::of("blocking signals")(errno));
        }
        // Ctrl-Alt-Del becomes SIGINT, so that it too ends the machine in order.
        if let Err(errno) = set_cad_enabled(false) {
            report(&Failure::of("taking over Ctrl-Alt-Del")(errno));
        }
        loop {
            let timeout = match self.envd {
                Envd::Running { .. } => None,
                Envd::Waiting { until } => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.start();
                        continue;
                    }
                    Some(left)
                }
            };
            match wait_for_signal(&self.signals, timeout) {
                Some(Signal::SIGCHLD) => self.reap(),
                Some(Signal::SIGTERM | Signal::SIGPWR) => {
                    return end_machine(&self.signals, RebootMode::RB_POWER_OFF);
                }
                Some(Signal::SIGINT) => return end_machine(&self.signals, RebootMode::RB_AUTOBOOT),
                Some(other) => self.forward(other),
                None => {}
            }
        }
    }

    fn start(&mut self) {
        let mut command = Command::new(ENVD);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").current_dir("/").stdin(Stdio::null());
        // SAFETY: between fork and exec only two async-signal-safe system calls are made.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
                Ok(())
            });
        }
        match command.spawn() {
            // Dropping the handle leaves the process alone; it is reaped with all the others.
            Ok(child) => {
                let pid = Pid::from_raw(child.id().cast_signed());
                self.envd = Envd::Running { pid, since: Instant::now() };
            }
            Err(e) => {
                report(&Failure::of(format!("starting {ENVD}"))(e));
                self.wait_before_restart();
            }
        }
    }

    fn wait_before_restart(&mut self) {
        self.envd = Envd::Waiting { until: Instant::now() + self.backoff };
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
    }

    /// Takes every ended process there is: signals of one kind are merged, so one may stand for many.
    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => self.ended(status),
                Err(errno) => {
                    report(&Failure::of("reaping")(errno));
                    return;
                }
            }
        }
    }

    fn ended(&mut self, status: WaitStatus) {
        let Envd::Running { pid, since } = self.envd else { return };
        let how = match status {
            WaitStatus::Exited(ended, code) if ended == pid => format!("exited with {code}"),
            WaitStatus::Signaled(ended, signal, _) if ended == pid => format!("was killed by {signal}"),
            _ => return,
        };
        if since.elapsed() >= WELL_AFTER {
            self.backoff = FIRST_BACKOFF;
        }
        eprintln!("wrenn-init: envd {how}, starting it again in {} ms", self.backoff.as_millis());
        self.wait_before_restart();
    }

    fn forward(&self, signal: Signal) {
        if let Envd::Running { pid, .. } = self.envd
            && let Err(errno) = kill(pid, signal)
        {
            report(&Failure::of(format!("passing {signal} on to envd"))(errno));
        }
    }
}

/// The next awaited signal, or none when the time is over.
fn wait_for_signal(signals: &SigSet, timeout: Option<Duration>) -> Option<Signal> {
    let timeout = timeout.map(|left| libc::timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut info = MaybeUninit::uninit();
    // SAFETY: the set and the time are alive for the whole call, a null time means for ever, and the
    // kernel writes at most one `siginfo_t` to the last pointer.
    let signal = unsafe { libc::sigtimedwait(signals.as_ref(), info.as_mut_ptr(), timeout) };
    Signal::try_from(signal).ok()
}

/// Lets every process end, writes the disk, and ends the machine.
fn end_machine(signals: &SigSet, mode: RebootMode) -> ExitCode {
    let everyone = Pid::from_raw(-1);
    let deadline = Instant::now() + GRACE;
    // ESRCH: nobody is left, which is what is wanted.
    _ = kill(everyone, Signal::SIGTERM);
    while anybody_left() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            _ = kill(everyone, Signal::SIGKILL);
            break;
        }
        wait_for_signal(signals, Some(left));
    }
    sync();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(errno) = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>) {
        report(&Failure::of("making / read-only")(errno));
        sync();
    }
    let Err(errno) = reboot(mode);
    report(&Failure::of("ending the machine")(io::Error::from(errno)));
    ExitCode::FAILURE
}

/// Reaps who has ended; whether there is still somebody.
fn anybody_left() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Err(Errno::ECHILD) => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
}
