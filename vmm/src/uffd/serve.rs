//! The process: it waits for its VMM, has the threads serve it, answers who asks how it is going, and ends
//! with the VMM.

use std::{
    env,
    error::Error,
    fs,
    io::{self, Write as _},
    ops::Range,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{
            fs::{PermissionsExt as _, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        prctl,
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

use super::{
    config::{MOST_WORKERS, PageServerConfig},
    control::{self, Answer, Request, Stats},
    guest::GuestMemory,
    handshake::{self, HandshakeError, Vmm},
    pages,
    source::{PAGE, PageSource},
    workers::Service,
    working_set::{self, WorkingSet, WorkingSetError},
};
use crate::{
    failure::{Doing as _, Failure},
    memory::{BlockAt, MemoryError},
};

/// What a page server says first on its standard output, when the VMM and its handle may connect.
pub(super) const LISTENING: &str = "listening";
/// … or this and the reason.
pub(super) const FAILED: &str = "error: ";

#[derive(Debug, thiserror::Error)]
pub enum PageServerError {
    #[error("the page server's configuration is not understood")]
    Config(#[from] serde_json::Error),
    #[error("{0} threads to answer faults: give 1 to {MOST_WORKERS}")]
    Workers(usize),
    #[error("no VMM has connected in {} s", .0.as_secs())]
    Nobody(Duration),
    #[error("the VMM's memory was not taken over")]
    Handshake(#[from] HandshakeError),
    #[error("the VMM's memory can no longer be served")]
    Service(#[source] Failure),
    #[error("the snapshot's memory")]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Io(#[from] Failure),
}

/// Runs a page server in this process to its end, told by the argument that [`super::PageServerHandle::spawn`]
/// gives. It returns without an error when the VMM has ended; threads may be left, so the process should
/// end then.
pub fn run(argument: &str) -> Result<(), PageServerError> {
    let bound = serde_json::from_str(argument).map_err(PageServerError::from).and_then(PageServer::bind);
    let announcement = match &bound {
        Ok(_) => LISTENING.to_owned(),
        Err(error) => format!("{FAILED}{}", chain(error)),
    };
    // Whoever started this and does not listen has given it up, but a VMM may come all the same.
    let _ = writeln!(io::stdout(), "{announcement}");
    bound?.serve()
}

/// A server whose sockets are there.
pub struct PageServer {
    config: PageServerConfig,
    source: Arc<dyn PageSource>,
    socket: Socket,
    control: Socket,
}

impl PageServer {
    pub fn bind(config: PageServerConfig) -> Result<Self, PageServerError> {
        let source = config.memory.open()?;
        Self::bind_with(config, Arc::new(source))
    }

    /// The same for memory that comes from elsewhere than the configuration says.
    pub fn bind_with(config: PageServerConfig, source: Arc<dyn PageSource>) -> Result<Self, PageServerError> {
        if config.workers == 0 || config.workers > MOST_WORKERS {
            return Err(PageServerError::Workers(config.workers));
        }
        let socket = Socket::bind(&config.socket)?;
        let control = Socket::bind(&config.control)?;
        if let Some(user) = config.user {
            chown(&config.socket, Some(user), Some(user))
                .doing(|| format!("giving {} to user {user}", config.socket.display()))?;
        }
        Ok(Self { config, source, socket, control })
    }

    /// Serves one VMM until it ends.
    pub fn serve(mut self) -> Result<(), PageServerError> {
        self.enter_record_directory();
        let known = self.config.prefetch.as_deref().map(|path| load(path, &*self.source)).unwrap_or_default();
        let prefetch = plan(&known, &*self.source);
        // Everything that only root may open is open.
        if let Some(user) = self.config.user {
            become_user(user)?;
        }
        let stream = self.wait_for_vmm()?;
        let Self { config, source, socket, control } = self;
        drop(socket);
        let vmm = handshake::receive(stream, source.blocks() * PAGE)?;
        tracing::info!(pid = vmm.pid, blocks = source.blocks(), "serving the memory of a VMM");
        Serving::start(&config, source, vmm, prefetch, known.restores.saturating_add(1))?.oversee(&control)
    }

    /// What is recorded is named from within its directory: the user this becomes may not get into those above it.
    /// A directory that cannot be entered is found out again by who records, and reported then.
    fn enter_record_directory(&mut self) {
        if let Some(record) = &mut self.config.record
            && let (Some(directory), Some(name)) = (record.parent(), record.file_name())
        {
            match env::set_current_dir(directory) {
                Ok(()) => *record = Path::new(".").join(name),
                Err(error) => {
                    tracing::warn!(%error, directory = %directory.display(), "entering a directory");
                }
            }
        }
    }

    fn wait_for_vmm(&self) -> Result<UnixStream, PageServerError> {
        let deadline = Instant::now() + self.config.accept_within;
        loop {
            let [vmm, caller] = ready([self.socket.0.as_fd(), self.control.0.as_fd()], Some(deadline))?;
            if vmm {
                match self.socket.0.accept() {
                    Ok((stream, _)) => return Ok(stream),
                    // It has gone away again.
                    Err(error) => tracing::warn!(%error, "accepting a VMM's connection"),
                }
            }
            if caller {
                self.control.answer_one(|(request, _)| match request {
                    Request::Stats => Some(Answer::Stats(Stats::default())),
                    Request::Ready => Some(Answer::Failed("no VMM has connected yet".to_owned())),
                });
            }
            if Instant::now() >= deadline {
                return Err(PageServerError::Nobody(self.config.accept_within));
            }
        }
    }
}

/// A VMM being served.
struct Serving {
    service: Arc<Service>,
    ended: Arc<EventFd>,
    recorder: Arc<Recorder>,
    pidfd: OwnedFd,
    /// When the restore counts as ready.
    record_at: Option<Instant>,
}

impl Serving {
    fn start(
        config: &PageServerConfig,
        source: Arc<dyn PageSource>,
        vmm: Vmm,
        prefetch: Vec<Range<u64>>,
        restores: u64,
    ) -> Result<Self, Failure> {
        let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let ended = Arc::new(ended.doing(|| "making an event descriptor")?);
        let Vmm { userfault, layout, pidfd, .. } = vmm;
        let pages = source.blocks();
        let memory = GuestMemory::new(userfault, layout, pages)?;
        let service = Arc::new(Service::new(memory, source, config.workers, ended.clone()));
        service.start(prefetch)?;
        let to = config.record.clone();
        let recorder = Arc::new(Recorder { to, pages, restores, done: OnceLock::new() });
        let record_at = Instant::now().checked_add(config.record_for);
        Ok(Self { service, ended, recorder, pidfd, record_at })
    }

    fn oversee(mut self, control: &Socket) -> Result<(), PageServerError> {
        loop {
            let watched = [self.pidfd.as_fd(), self.ended.as_fd(), control.0.as_fd()];
            let [vmm_ended, ended, caller] = ready(watched, self.record_at)?;
            if vmm_ended {
                tracing::info!(stats = ?self.stats(), "the VMM has ended");
                self.service.stop();
                return Ok(());
            }
            if ended && let Some(end) = self.service.end() {
                return end.map_err(PageServerError::Service);
            }
            if caller {
                control.answer_one(|request| self.request(request));
            }
            if self.record_at.is_some_and(|at| Instant::now() >= at) {
                self.record_at = None;
                self.record(None);
            }
        }
    }

    fn stats(&self) -> Stats {
        let recorded = self.recorder.done.get().and_then(|done| done.as_ref().ok().copied());
        Stats { recorded, ..self.service.stats() }
    }

    /// None if somebody else will answer.
    fn request(&mut self, (request, stream): (Request, UnixStream)) -> Option<Answer> {
        match request {
            Request::Stats => Some(Answer::Stats(self.stats())),
            Request::Ready => {
                self.record_at = None;
                self.record(Some(stream));
                None
            }
        }
    }

    /// Syncing a file may take long: whoever asks for something else need not wait for it.
    fn record(&self, caller: Option<UnixStream>) {
        let (service, recorder) = (self.service.clone(), self.recorder.clone());
        let run = move || {
            let answer = match recorder.record(&service.memory.pages) {
                Ok(pages) => Answer::Recorded(*pages),
                Err(why) => Answer::Failed(why.clone()),
            };
            if let Some(Err(error)) = caller.map(|stream| control::answer(&stream, &answer)) {
                tracing::debug!(%error, "nobody waits for the working set any more");
            }
        };
        if let Err(error) = thread::Builder::new().name("record".to_owned()).spawn(run) {
            tracing::warn!(%error, "the working set is not recorded");
        }
    }
}

/// Keeps what the restore needed, once.
struct Recorder {
    to: Option<PathBuf>,
    /// Of all the memory.
    pages: u64,
    /// In a row, with this one.
    restores: u64,
    done: OnceLock<Result<u64, String>>,
}

impl Recorder {
    /// So many pages are recorded; whoever comes while that is being done waits for it.
    fn record(&self, pages: &pages::Pages) -> &Result<u64, String> {
        self.done.get_or_init(|| {
            let Some(path) = &self.to else { return Ok(0) };
            let set = WorkingSet { stretches: pages.needed(), restores: self.restores };
            working_set::store(path, &set, self.pages).map_err(|failure| {
                let why = chain(&failure);
                tracing::warn!(why, "the next restore will have no working set");
                why
            })?;
            Ok(set.stretches.iter().map(|range| range.end - range.start).sum())
        })
    }
}

/// What restores before this one needed, as far as that is known.
fn load(path: &Path, source: &dyn PageSource) -> WorkingSet {
    match working_set::load(path, source.blocks()) {
        Ok(set) => set,
        Err(WorkingSetError::Io(failure)) if failure.source.kind() == io::ErrorKind::NotFound => {
            WorkingSet::default()
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), why = chain(&error), "restoring without a working set");
            WorkingSet::default()
        }
    }
}

/// What to prefetch, in the order of a sequential read.
fn plan(known: &WorkingSet, source: &dyn PageSource) -> Vec<Range<u64>> {
    let mut steps: Vec<_> = known.to_prefetch().flat_map(pages::steps).collect();
    // What has content first: the rest costs no reading.
    steps.sort_by_key(|step| {
        let at = source.block(step.start);
        (at == BlockAt::Zero, at, step.start)
    });
    steps
}

/// A listening socket; its name goes with it.
struct Socket(UnixListener, PathBuf);

impl Socket {
    /// For the owner alone.
    fn bind(path: &Path) -> Result<Self, Failure> {
        let doing = || format!("listening on {}", path.display());
        let socket = Self(UnixListener::bind(path).doing(doing)?, path.to_owned());
        socket.0.set_nonblocking(true).doing(doing)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).doing(doing)?;
        Ok(socket)
    }

    /// Has one caller's request answered.
    fn answer_one(&self, answer: impl FnOnce((Request, UnixStream)) -> Option<Answer>) {
        let answered = self.0.accept().and_then(|(stream, _)| {
            let request = control::receive(&stream)?;
            match answer((request, stream.try_clone()?)) {
                Some(answer) => control::answer(&stream, &answer),
                None => Ok(()),
            }
        });
        if let Err(error) = answered {
            tracing::debug!(%error, "answering a caller");
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.1)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %self.1.display(), %error, "removing a socket");
        }
    }
}

/// Waits until one of the descriptors is readable, or for the deadline; which are.
fn ready<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    deadline: Option<Instant>,
) -> Result<[bool; N], Failure> {
    let mut wanted = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        // Rounded up, so as not to wake just before it.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut wanted, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(wanted.map(|one| one.any().unwrap_or(false))),
        Err(errno) => Err(errno).doing(|| "waiting for the VMM"),
    }
}

/// Gives up what root can do, for good. To be called before there is a second thread.
fn become_user(user: u32) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[])
        .and_then(|()| setresgid(gid, gid, gid))
        // Leaving root gives up all capabilities.
        .and_then(|()| setresuid(uid, uid, uid))
        .and_then(|()| prctl::set_no_new_privs())
        .doing(|| format!("becoming user {user}"))
}

/// An error and what caused it, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
