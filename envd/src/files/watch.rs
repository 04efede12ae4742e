//! What changes below a directory, told to one reader.
//!
//! ```text
//!   kernel's queue (bounded) ── only when the reader asks ──▶ changes of one round (bounded) ──▶ reader
//!        │                                                          │
//!        └── too much ──▶ overflow ◀────────── too much ────────────┘
//! ```
//!
//! Nothing is read ahead of the reader: one that is slow lets the kernel's own queue run over, and is told so. The
//! watch ends with its reader, or when its directory is removed or moved away.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::sys::stat::{Mode, lstat};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Status;
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::file_event::Event;
use wrenn_proto::envd::v1::{FileChangeKind, FileKind};

use crate::channel;
use crate::files::actor::Actor;
use crate::files::entry::kind;
use crate::files::error::{FileError, Problem, Target};
use crate::files::tree::Tree;
use crate::files::write::is_aside;

/// Watches at one time: the kernel allows 128 in the whole guest.
const MOST_WATCHES: usize = 32;
/// Directories of one watch. Each costs the guest's kernel about a kilobyte.
const MOST_DIRECTORIES: usize = 8192;
/// Changes taken from the kernel before the reader gets the first of them.
const ROUND: usize = 256;
/// Changes that may wait for the reader: new directories can turn one event into many.
const MOST_TOLD: usize = 1024;
/// How long the second half of a move may take to follow the first.
const PAIR: Duration = Duration::from_millis(10);

/// How many watches there may be.
#[derive(Debug, Clone)]
pub struct Watches {
    free: Arc<Semaphore>,
}

impl Default for Watches {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(MOST_WATCHES)) }
    }
}

/// One watch and its reader.
#[derive(Debug)]
pub struct Watching {
    actor: Actor,
    queue: AsyncFd<OwnedFd>,
    /// Absent while a worker has it.
    state: Option<State>,
    begun: bool,
    _place: OwnedSemaphorePermit,
}

impl Watching {
    /// Watches from now on.
    ///
    /// # Errors
    /// It is no directory the user may read, or holds too much to be watched.
    pub async fn start(
        watches: &Watches,
        actor: Actor,
        target: Target,
        recursive: bool,
    ) -> Result<Self, FileError> {
        let place =
            Arc::clone(&watches.free).try_acquire_owned().map_err(|_| target.is(Problem::TooManyWatches))?;
        let state = {
            let target = target.clone();
            actor.run(move || State::start(&target, recursive)).await?
        };
        let queue = state.inotify.as_fd().try_clone_to_owned().and_then(|it| Ok(channel::watch(it)?));
        let queue = queue.map_err(|error| {
            target.cannot("watch")(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        })?;
        Ok(Self { actor, queue, state: Some(state), begun: false, _place: place })
    }

    pub fn into_stream(self) -> impl Stream<Item = Result<pb::FileEvent, Status>> + Send + 'static {
        futures_util::stream::unfold(Some(self), |watching| async move {
            let mut watching = watching?;
            match watching.next().await {
                Ok(None) => None,
                Ok(event) => Some((Ok(pb::FileEvent { event }), Some(watching))),
                Err(error) => Some((Err(error.into()), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Event>, FileError> {
        if !self.begun {
            self.begun = true;
            return Ok(Some(Event::Ready(pb::WatchReady {})));
        }
        while let Some(mut state) = self.state.take() {
            if let Some(event) = state.told.pop_front() {
                self.state = Some(state);
                return Ok(Some(event));
            }
            if state.over {
                break;
            }
            let ready = self.queue.readable();
            let ready = match state.half {
                None => ready.await,
                Some(_) => match timeout(PAIR, ready).await {
                    Ok(ready) => ready,
                    Err(_) => {
                        state.settle();
                        self.state = Some(state);
                        continue;
                    }
                },
            };
            // Only at the end of the runtime.
            let Ok(mut ready) = ready else { break };
            let take_in = move || {
                state.take_in();
                Ok(state)
            };
            let state = self.actor.run(take_in).await?;
            if state.drained {
                ready.clear_ready();
            }
            self.state = Some(state);
        }
        Ok(None)
    }
}

/// What a worker needs to turn the kernel's events into changes.
#[derive(Debug)]
struct State {
    inotify: Inotify,
    tree: Tree,
    recursive: bool,
    told: VecDeque<Event>,
    half: Option<Half>,
    /// Told because they were found in a new directory; the kernel may tell them again.
    found: HashSet<(WatchDescriptor, OsString)>,
    /// The kernel had nothing more.
    drained: bool,
    /// The directory itself is gone.
    over: bool,
}

/// A move of which the new place is not known yet.
#[derive(Debug)]
struct Half {
    cookie: u32,
    directory: WatchDescriptor,
    name: OsString,
    path: PathBuf,
    is_directory: bool,
}

/// Whether what is found in a directory is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Tell,
    Keep,
}

impl State {
    fn start(target: &Target, recursive: bool) -> Result<Self, FileError> {
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(target.cannot("watch"))?;
        let mut state = Self {
            inotify,
            tree: Tree::new(target.path.clone()),
            recursive,
            told: VecDeque::new(),
            half: None,
            found: HashSet::new(),
            drained: false,
            over: false,
        };
        match state.watch_top().map_err(target.cannot("watch"))? {
            true => Ok(state),
            false => Err(target.is(Problem::TooManyToWatch)),
        }
    }

    /// Watches the directory that was asked for, and all below it; false if not all could be.
    fn watch_top(&mut self) -> nix::Result<bool> {
        let top = self.tree.top().to_owned();
        let directory = self.inotify.add_watch(&top, mask())?;
        self.tree.place(directory, None, OsStr::new(""));
        Ok(self.watch_below(directory, Found::Keep))
    }

    /// Takes one round of events from the kernel.
    fn take_in(&mut self) {
        self.drained = false;
        while self.told.len() < ROUND && !self.over {
            match self.inotify.read_events() {
                Ok(events) => events.into_iter().for_each(|it| self.event(it)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.drained = true;
                    self.found.clear();
                    return;
                }
                Err(_) => self.over = true,
            }
        }
    }

    fn event(&mut self, event: InotifyEvent) {
        let mask = event.mask;
        if let Some(half) = self.half.take() {
            if mask.contains(AddWatchFlags::IN_MOVED_TO) && event.cookie == half.cookie {
                return self.moved(half, &event);
            }
            self.moved_away(half);
        }
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return self.start_anew();
        }
        let directory = event.wd;
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.over |= self.tree.is_top(directory);
            return self.tree.forget(directory);
        }
        let Some(name) = event.name.as_deref() else { return self.about_itself(directory, mask) };
        // A file that is being written aside is nobody's business until it has its name.
        if is_aside(name) {
            return;
        }
        let Some(path) = self.tree.path(directory).map(|it| it.join(name)) else { return };
        let is_directory = mask.contains(AddWatchFlags::IN_ISDIR);
        if mask.intersects(AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE) {
            self.found.remove(&(directory, name.to_owned()));
        }
        if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            let (cookie, name) = (event.cookie, name.to_owned());
            self.half = Some(Half { cookie, directory, name, path, is_directory });
        } else if mask.contains(AddWatchFlags::IN_CREATE) {
            if !self.found.remove(&(directory, name.to_owned())) {
                self.tell(FileChangeKind::Created, path, is_directory, None);
                self.watch_new(directory, name, is_directory, Found::Tell);
            }
        } else if mask.contains(AddWatchFlags::IN_MOVED_TO) {
            self.tell(FileChangeKind::Created, path, is_directory, None);
            self.watch_new(directory, name, is_directory, Found::Keep);
        } else if mask.contains(AddWatchFlags::IN_DELETE) {
            self.tell(FileChangeKind::Removed, path, is_directory, None);
        } else if mask.contains(AddWatchFlags::IN_MODIFY) {
            self.tell(FileChangeKind::Modified, path, is_directory, None);
        } else if mask.contains(AddWatchFlags::IN_ATTRIB) {
            self.tell(FileChangeKind::Attributes, path, is_directory, None);
        }
    }

    /// An event of a watched directory itself. Those below the top are told by the directory they are in.
    fn about_itself(&mut self, directory: WatchDescriptor, mask: AddWatchFlags) {
        let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_UNMOUNT;
        if mask.intersects(gone) && self.tree.is_top(directory) {
            self.tell(FileChangeKind::Removed, self.tree.top().to_owned(), true, None);
            self.over = true;
        }
    }

    /// Both halves of a move are known.
    fn moved(&mut self, half: Half, event: &InotifyEvent) {
        let name = event.name.as_deref().unwrap_or_default();
        let Some(path) = self.tree.path(event.wd).map(|it| it.join(name)) else {
            return self.moved_away(half);
        };
        self.tell(FileChangeKind::Moved, path, half.is_directory, Some(half.path));
        if !half.is_directory {
            return;
        }
        match self.tree.child(half.directory, &half.name) {
            Some(known) => self.tree.place(known, Some(event.wd), name),
            None => self.watch_new(event.wd, name, true, Found::Keep),
        }
    }

    /// A move whose other half did not follow went out of sight.
    fn moved_away(&mut self, half: Half) {
        self.tell(FileChangeKind::Removed, half.path, half.is_directory, None);
        let known = self.tree.child(half.directory, &half.name).filter(|_| half.is_directory);
        for directory in known.map(|it| self.tree.cut(it)).unwrap_or_default() {
            // Fails for one that was removed meanwhile.
            let _ = self.inotify.rm_watch(directory);
        }
    }

    /// No second half came in time.
    fn settle(&mut self) {
        if let Some(half) = self.half.take() {
            self.moved_away(half);
        }
    }

    fn watch_new(&mut self, parent: WatchDescriptor, name: &OsStr, is_directory: bool, found: Found) {
        if !is_directory || !self.recursive {
            return;
        }
        let whole = match self.watch_one(parent, name) {
            Ok(Some(directory)) => self.watch_below(directory, found),
            Ok(None) => true,
            Err(Incomplete) => false,
        };
        if !whole {
            self.overflow();
        }
    }

    /// The number of a directory that is now watched; nothing if it is gone, was known, or may not be read.
    fn watch_one(
        &mut self,
        parent: WatchDescriptor,
        name: &OsStr,
    ) -> Result<Option<WatchDescriptor>, Incomplete> {
        if self.tree.count() >= MOST_DIRECTORIES {
            return Err(Incomplete);
        }
        let Some(path) = self.tree.path(parent).map(|it| it.join(name)) else { return Ok(None) };
        match self.inotify.add_watch(&path, mask() | AddWatchFlags::IN_DONT_FOLLOW) {
            // Seen from a second place, as by a bind mount: once is enough, and may be endless.
            Ok(known) if self.tree.contains(known) => Ok(None),
            Ok(directory) => {
                self.tree.place(directory, Some(parent), name);
                Ok(Some(directory))
            }
            Err(Errno::ENOSPC | Errno::ENOMEM | Errno::ENAMETOOLONG) => Err(Incomplete),
            Err(_) => Ok(None),
        }
    }

    /// Watches every directory below one; false if not all could be.
    fn watch_below(&mut self, directory: WatchDescriptor, found: Found) -> bool {
        let mut whole = true;
        let mut open = vec![directory];
        while let Some(directory) = open.pop().filter(|_| self.recursive) {
            let Some(path) = self.tree.path(directory) else { continue };
            for (name, is_directory) in self.entries(directory, &path, found) {
                if found == Found::Tell && !is_aside(&name) {
                    self.tell(FileChangeKind::Created, path.join(&name), is_directory, None);
                    if self.found.len() < MOST_TOLD {
                        self.found.insert((directory, name.clone()));
                    }
                }
                match is_directory.then(|| self.watch_one(directory, &name)) {
                    Some(Ok(Some(below))) => open.push(below),
                    Some(Err(Incomplete)) => whole = false,
                    _ => {}
                }
            }
            if !whole {
                return false;
            }
        }
        true
    }

    /// The names in a directory that matter, and which of them are directories. Empty if it cannot be read: it is
    /// gone, or the user may not.
    fn entries(&self, directory: WatchDescriptor, path: &Path, found: Found) -> Vec<(OsString, bool)> {
        let mut flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        flags.set(OFlag::O_NOFOLLOW, !self.tree.is_top(directory));
        let Ok(mut directory) = Dir::open(path, flags, Mode::empty()) else { return Vec::new() };
        let entries = directory.iter().map_while(Result::ok);
        entries
            .filter(|it| !matches!(it.file_name().to_bytes(), b"." | b".."))
            .map(|it| {
                let name = OsStr::from_bytes(it.file_name().to_bytes()).to_owned();
                let is_directory = match it.file_type() {
                    None => lstat(&path.join(&name)).is_ok_and(|it| kind(&it) == FileKind::Directory),
                    Some(known) => known == Type::Directory,
                };
                (name, is_directory)
            })
            .filter(|(_, is_directory)| *is_directory || found == Found::Tell)
            // More would only be told as an overflow.
            .take(MOST_DIRECTORIES)
            .collect()
    }

    /// After lost events nothing is known any more: what was created has no watch, what was moved a wrong name.
    fn start_anew(&mut self) {
        for directory in self.tree.clear() {
            let _ = self.inotify.rm_watch(directory);
        }
        self.found.clear();
        match self.watch_top() {
            Ok(_) => self.overflow(),
            Err(_) => {
                self.tell(FileChangeKind::Removed, self.tree.top().to_owned(), true, None);
                self.over = true;
            }
        }
    }

    fn overflow(&mut self) {
        self.told.clear();
        self.told.push_back(Event::Overflow(pb::WatchOverflow {}));
    }

    fn tell(&mut self, change: FileChangeKind, path: PathBuf, is_directory: bool, from: Option<PathBuf>) {
        if self.told.len() >= MOST_TOLD {
            return self.overflow();
        }
        let file_kind = match change {
            _ if is_directory => FileKind::Directory,
            // Nothing is left to be asked.
            FileChangeKind::Removed => FileKind::Unspecified,
            _ => lstat(&path).map_or(FileKind::Unspecified, |it| kind(&it)),
        };
        let event = Event::Change(pb::FileChange {
            kind: change.into(),
            path: path.to_string_lossy().into_owned(),
            file_kind: file_kind.into(),
            moved_from: from.map(|it| it.to_string_lossy().into_owned()),
        });
        // A program that writes in small pieces says the same again and again.
        if self.told.back() != Some(&event) {
            self.told.push_back(event);
        }
    }
}

/// A directory could not be watched for want of room.
struct Incomplete;

fn mask() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}
