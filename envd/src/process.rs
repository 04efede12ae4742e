//! One process: from its start to the moment it is forgotten.
//!
//! ```text
//!   start ─▶ running ──── leader exits ────▶ exited ─── remembered long enough ─▶ forgotten
//!               │                               ▲
//!               └── timeout: group is killed ───┘
//! ```
//! A terminal may be hung up before that, when nobody uses it.
//!
//! The leader is reaped as soon as it exits. Its output ends by itself (see [`crate::pump`]), and the rest of
//! its group lives on unless a timeout says otherwise.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use wrenn_proto::envd::v1 as pb;

use crate::channel::{Parent, Pipes, Terminal, watch};
use crate::exit::{self, Exit};
use crate::input::Input;
use crate::launch::{Launch, window_size};
use crate::output::Output;
use crate::output::budget::Budget;
use crate::pump::Pump;
use crate::spawn::{self, Program, SpawnError, Spawned};

/// A process that was started, living or exited.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub tag: String,
    pub input: Arc<Input>,
    pub output: Arc<Output>,
    pub kind: Kind,
    /// When it was reaped.
    pub exited_at: OnceLock<Instant>,
    command: String,
    user: String,
    cwd: String,
    started_at_ns: i64,
    /// False once the leader is reaped; locked while its number is used.
    alive: Mutex<bool>,
}

/// What a process leaves to its readers. It outlives the rest of it.
#[derive(Debug, Clone)]
pub struct Trail {
    pub pid: u32,
    pub tag: String,
    pub output: Arc<Output>,
}

/// What the process has for its input and output.
#[derive(Debug)]
pub enum Kind {
    Plain,
    Terminal(Terminal),
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Launch(#[from] crate::launch::LaunchError),
    #[error("cannot connect to the process")]
    Channel(#[source] io::Error),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// What is the same for every process.
#[derive(Debug)]
pub struct Rules {
    /// How long a reader that went away is waited for.
    pub reconnect_grace: Duration,
    /// After how long a terminal that nobody uses is hung up, if that was asked for.
    pub terminal_idle: Duration,
    /// Children do not share envd's protection from the out-of-memory killer.
    pub expendable: bool,
    /// What the output of all of them may occupy.
    pub budget: Arc<Budget>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the process has exited")]
pub struct AlreadyExited;

/// A process that has begun, and what its supervisor needs.
pub struct Started {
    pub process: Arc<Process>,
    pub supervision: Supervision,
}

/// The task that waits for the exit, not yet begun.
pub struct Supervision {
    process: Arc<Process>,
    pidfd: AsyncFd<OwnedFd>,
    exited: CancellationToken,
    timeout: Option<Duration>,
    /// Hung up when it was not used for so long.
    idle: Option<Duration>,
}

impl Process {
    /// Starts what was prepared from `request` and the tasks that move its input and output.
    ///
    /// # Errors
    /// Nothing was started.
    pub fn start(
        request: &pb::StartRequest,
        launch: Launch,
        tag: String,
        rules: &Rules,
    ) -> Result<Started, StartError> {
        match request.pty {
            None => Self::start_plain(request, launch, tag, rules),
            Some(size) => {
                let size = window_size(size, "pty").map_err(crate::launch::LaunchError::from)?;
                let mut started = Self::start_terminal(request, launch, tag, rules, &size)?;
                started.supervision.idle = request.close_when_idle.then_some(rules.terminal_idle);
                Ok(started)
            }
        }
    }

    fn start_plain(
        request: &pb::StartRequest,
        launch: Launch,
        tag: String,
        rules: &Rules,
    ) -> Result<Started, StartError> {
        let wants_input = !(request.close_stdin && request.stdin.is_empty());
        let pipes = Pipes::open(wants_input).map_err(StartError::Channel)?;
        let child = run(&launch, pipes.stdio(), false, rules)?;
        let input = Arc::new(Input::new(&request.stdin));
        if request.close_stdin {
            input.close();
        }
        match &pipes.stdin {
            Some(stdin) => write_input(&input, stdin),
            None => input.abandon(),
        }
        let output = Arc::new(Output::plain(rules.reconnect_grace, &rules.budget));
        let sources = [Arc::clone(&pipes.stdout), Arc::clone(&pipes.stderr)];
        Ok(Self::begin(request, launch, tag, child, Kind::Plain, input, output, sources))
    }

    fn start_terminal(
        request: &pb::StartRequest,
        launch: Launch,
        tag: String,
        rules: &Rules,
        size: &nix::pty::Winsize,
    ) -> Result<Started, StartError> {
        let owner = launch.credentials.as_ref().map_or(nix::unistd::geteuid().as_raw(), |it| it.uid);
        let (terminal, slave) = Terminal::open(size, owner).map_err(StartError::Channel)?;
        let child = run(&launch, [slave.as_fd(); 3], true, rules)?;
        drop(slave);
        let input = Arc::new(Input::new(&request.stdin));
        write_input(&input, &terminal.master);
        let output = Arc::new(Output::terminal(rules.reconnect_grace, &rules.budget));
        let sources = [Arc::clone(&terminal.master)];
        Ok(Self::begin(request, launch, tag, child, Kind::Terminal(terminal), input, output, sources))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where everything of a process comes together"
    )]
    fn begin(
        request: &pb::StartRequest,
        launch: Launch,
        tag: String,
        (pid, pidfd): (u32, AsyncFd<OwnedFd>),
        kind: Kind,
        input: Arc<Input>,
        output: Arc<Output>,
        sources: impl IntoIterator<Item = Parent>,
    ) -> Started {
        let exited = CancellationToken::new();
        for (stream, source) in sources.into_iter().enumerate() {
            let (output, exited) = (Arc::clone(&output), exited.clone());
            tokio::spawn(Pump { source, output, stream, exited }.run());
        }
        let process = Arc::new(Self {
            pid,
            tag,
            input,
            output,
            kind,
            exited_at: OnceLock::new(),
            command: launch.command,
            user: launch.user,
            cwd: launch.shown_cwd,
            started_at_ns: now_ns(),
            alive: Mutex::new(true),
        });
        let timeout = (request.timeout_sec > 0).then(|| Duration::from_secs(request.timeout_sec.into()));
        let supervision = Supervision { process: Arc::clone(&process), pidfd, exited, timeout, idle: None };
        Started { process, supervision }
    }

    /// Sends a signal to the whole group.
    ///
    /// # Errors
    /// The leader is gone; its number may be another's by now.
    pub fn signal(&self, signal: Signal) -> Result<(), AlreadyExited> {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if !*alive {
            return Err(AlreadyExited);
        }
        killpg(self.group(), signal).map_err(|_| AlreadyExited)
    }

    /// Hangs up, as a line that broke, if the terminal was not used for `most`; answers when to look again.
    fn hang_up_if_idle(&self, most: Duration) -> Instant {
        let now = Instant::now();
        let due = self.output.idle_since().unwrap_or(now) + most;
        if due > now {
            return due;
        }
        // It may have exited just now; and what does not care for it is told again.
        let _ = self.signal(Signal::SIGHUP);
        now + most
    }

    /// Whether the leader is still there.
    pub fn running(&self) -> bool {
        self.output.exit().is_none()
    }

    /// What its readers see of it.
    pub fn trail(&self) -> Trail {
        Trail { pid: self.pid, tag: self.tag.clone(), output: Arc::clone(&self.output) }
    }

    /// As it is reported.
    pub fn describe(&self) -> pb::Process {
        let exit = self.output.exit();
        let size = match &self.kind {
            Kind::Terminal(terminal) => terminal.size().ok(),
            Kind::Plain => None,
        };
        pb::Process {
            pid: self.pid,
            tag: self.tag.clone(),
            command: self.command.clone(),
            user: self.user.clone(),
            cwd: self.cwd.clone(),
            started_at_ns: self.started_at_ns,
            pty: matches!(self.kind, Kind::Terminal(_)),
            running: exit.is_none(),
            exit_code: exit.and_then(Exit::code),
            signal: exit.and_then(Exit::signal),
            size: size.map(|size| pb::PtySize { columns: size.ws_col.into(), rows: size.ws_row.into() }),
        }
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX))
    }

    fn reap(&self, pidfd: &OwnedFd) -> Option<Exit> {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let exit = match exit::reap(pidfd) {
            Ok(None) => return None,
            Ok(Some(exit)) => exit,
            // Somebody else took the status: all that is known is that it is gone.
            Err(_) => Exit::Code(-1),
        };
        *alive = false;
        Some(exit)
    }

    /// Whether something of the group is left after its leader was reaped. As long as that is so, the
    /// number is given to no new process; a process that has it shows that the group is gone.
    fn orphans(&self) -> bool {
        kill(self.group(), None) == Err(Errno::ESRCH) && killpg(self.group(), None).is_ok()
    }
}

impl Supervision {
    /// Runs until the leader is reaped and its exit published.
    pub async fn run(self) {
        let Self { process, pidfd, exited, timeout, idle } = self;
        let expiry = timeout.map(|it| Instant::now() + it);
        let mut due = expiry;
        let mut look = Instant::now();
        let exit = loop {
            tokio::select! {
                ready = pidfd.readable() => {
                    if let Some(exit) = process.reap(pidfd.get_ref()) {
                        break exit;
                    }
                    match ready {
                        Ok(mut ready) => ready.clear_ready(),
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    // It may have exited just now; that is as good.
                    let _ = process.signal(Signal::SIGKILL);
                }
                () = sleep_until(look), if idle.is_some() => {
                    look = process.hang_up_if_idle(idle.unwrap_or_default());
                }
            }
        };
        let _ = process.exited_at.set(Instant::now());
        process.output.set_exit(exit);
        process.input.abandon();
        exited.cancel();
        if let Some(due) = due
            && process.orphans()
        {
            tokio::spawn(async move {
                sleep_until(due).await;
                if process.orphans() {
                    let _ = killpg(process.group(), Signal::SIGKILL);
                }
            });
        }
    }
}

/// Starts the program and makes its exit something to wait for.
fn run(
    launch: &Launch,
    stdio: [std::os::fd::BorrowedFd<'_>; 3],
    terminal: bool,
    rules: &Rules,
) -> Result<(u32, AsyncFd<OwnedFd>), StartError> {
    let program = Program {
        path: &launch.path,
        argv: &launch.argv,
        env: &launch.env,
        cwd: &launch.cwd,
        credentials: launch.credentials.as_ref(),
        stdio,
        terminal,
        expendable: rules.expendable,
    };
    let Spawned { pid, pidfd } = spawn::spawn(&program)?;
    watch(pidfd).map(|pidfd| (pid, pidfd)).map_err(|error| {
        let (pidfd, source) = error.into_parts();
        let _ = killpg(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)), Signal::SIGKILL);
        let _ = nix::sys::wait::waitid(
            nix::sys::wait::Id::PIDFd(pidfd.as_fd()),
            nix::sys::wait::WaitPidFlag::WEXITED,
        );
        StartError::Channel(source)
    })
}

fn write_input(input: &Arc<Input>, target: &Parent) {
    let (input, target) = (Arc::clone(input), Arc::clone(target));
    tokio::spawn(async move { input.run(target).await });
}

/// The guest's clock, in nanoseconds since the Unix epoch.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
