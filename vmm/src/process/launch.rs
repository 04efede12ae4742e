//! Starts a VMM confined: in its slot's network namespace, as its slot's user, without any privilege,
//! with no descriptor but those it is given and, if it has a [jail](super::jail), no file but those in there.
//!
//! All this is prepared on a thread of its own, whose namespace and credentials the child inherits, so
//! that `posix_spawn` can start it without copying the page tables of this process: Linux
//! keeps namespaces, credentials and capabilities per thread.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
    ptr, thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

use super::{ProcessError, ProcessIdentity, VmmProcess, cgroup::Group, jail::Jail};
use crate::failure::{Doing as _, Failure};

/// A program to start.
pub struct Launch {
    /// As it is seen in the jail.
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Becomes descriptors 3, 4, … in this order; 0 is /dev/null.
    pub descriptors: Vec<OwnedFd>,
    /// Its standard output; the same as its standard error if unset.
    pub output: Option<OwnedFd>,
    /// Its standard error.
    pub log: OwnedFd,
    pub namespace: OwnedFd,
    /// Where all its files are; the host's own if unset.
    pub jail: Option<Jail>,
    pub uid: u32,
    /// Of devices it must open itself.
    pub groups: Vec<u32>,
    pub limits: Vec<(libc::__rlimit_resource_t, u64)>,
    /// Where the kernel holds it to what it may take of the host.
    pub group: Option<Group>,
}

/// Far more than a VMM's own threads and files come to.
pub const MOST_THREADS: u64 = 512;
pub const MOST_FILES: u64 = 1024;
/// For a program that is loaded already to be the process's.
const EXECUTION: Duration = Duration::from_secs(10);
/// First descriptor a program is given.
pub const FIRST_DESCRIPTOR: RawFd = 3;
/// A machine that eats the host's memory goes before what the host itself needs.
const OOM_SCORE_ADJUSTMENT: &str = "500";
/// And a guest that could use every CPU lets the host's programs go first: two thirds of the weight of what is not nice.
const NICE: libc::c_int = 2;

impl Launch {
    /// Blocks for the few milliseconds it takes; needs a runtime to watch the process with.
    pub fn start(self) -> Result<Launched, ProcessError> {
        let (pid, group) = self.spawn()?;
        let confined = expose(pid).and_then(|()| group.map_or(Ok(()), |group| group.add(pid)));
        let executed = confined.map_err(ProcessError::from).and_then(|()| await_program(pid));
        let watched = executed.and_then(|()| VmmProcess::of_child(pid));
        if watched.is_err() {
            end_child(pid);
        }
        Ok(Launched(Some(watched?)))
    }

    fn spawn(mut self) -> Result<(i32, Option<Group>), Failure> {
        let (program, group) = (self.program.clone(), self.group.take());
        let result = thread::Builder::new()
            .name("launch".into())
            .spawn(move || self.start_here())
            .doing(|| "starting the thread that launches a VMM")?
            .join();
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.map(|pid| (pid, group)).map_err(|mut failure| {
            failure.action = format!("starting {}: {}", program.display(), failure.action);
            failure
        })
    }

    /// Leaves the calling thread without privileges: it must end afterwards.
    fn start_here(self) -> Result<i32, Failure> {
        let null = OwnedFd::from(fs::File::open("/dev/null").doing(|| "opening /dev/null")?);
        let arguments = Vectors::new(&self.program, &self.arguments)?;
        let output = self.output.as_ref().unwrap_or(&self.log);
        let actions = FileActions::new([&null, output, &self.log], &self.descriptors)
            .doing(|| "listing descriptors")?;
        let attributes = Attributes::new().doing(|| "setting attributes")?;
        let last_capability = last_capability()?;
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).doing(|| "entering the network namespace")?;
        if let Some(jail) = self.jail {
            jail.enter()?;
        }
        drop_privileges(self.uid, &self.groups, last_capability)?;

        let mut pid = 0;
        // SAFETY: all pointers are to initialised values that live until the call returns; the vectors end
        // with a null pointer.
        let result = unsafe {
            libc::posix_spawn(
                &mut pid,
                arguments.program.as_ptr(),
                &actions.0,
                &attributes.0,
                arguments.argv.as_ptr(),
                arguments.environment.as_ptr(),
            )
        };
        if result != 0 {
            return Err(Failure::new("executing it", Errno::from_raw(result)));
        }
        let limited = limit(pid, &self.limits);
        if limited.is_err() {
            end_child(pid);
        }
        limited.map(|()| pid)
    }
}

/// `posix_spawn` answers when the child has let go of this process's memory, a moment before it is the new program that
/// `/proc` shows; a process that was recorded in that moment would not be known again.
fn await_program(pid: i32) -> Result<(), ProcessError> {
    let this = ProcessIdentity::of(std::process::id().cast_signed())?.executable;
    let begun = Instant::now();
    while ProcessIdentity::of(pid)?.executable == this {
        if begun.elapsed() > EXECUTION {
            let late = io::Error::from(io::ErrorKind::TimedOut);
            return Err(Failure::new("waiting for a VMM's program to begin", late).into());
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A process that nobody has taken charge of yet: it ends with this value, as when whoever wanted it has
/// given up meanwhile.
pub struct Launched(Option<VmmProcess>);

impl Launched {
    /// Has a process that was started in another way end with this value.
    pub fn guard(process: VmmProcess) -> Self {
        Self(Some(process))
    }

    pub fn process(&self) -> &VmmProcess {
        match &self.0 {
            Some(process) => process,
            None => unreachable!("only `keep` takes it out, and consumes this"),
        }
    }

    /// From here on it lives on its own.
    pub fn keep(mut self) -> VmmProcess {
        let process = self.process().clone();
        self.0 = None;
        process
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && let Err(error) = process.signal_end()
        {
            tracing::warn!(pid = process.identity().pid, %error, "ending a VMM that nobody took charge of");
        }
    }
}

/// Of a child that was not waited for yet: the number is still its.
fn end_child(pid: i32) {
    let pid = Pid::from_raw(pid);
    if let Err(errno) = kill(pid, Signal::SIGKILL).and_then(|()| waitpid(pid, None)) {
        tracing::warn!(%pid, %errno, "ending a VMM that could not be taken charge of");
    }
}

/// Makes a new child the kernel's first choice when memory is short, and its second when CPUs are. To be called by root:
/// for a moment after a program with changed credentials was started, the files of its process are not yet its user's.
fn expose(pid: i32) -> Result<(), Failure> {
    let path = format!("/proc/{pid}/oom_score_adj");
    fs::write(&path, OOM_SCORE_ADJUSTMENT).doing(|| format!("writing {path}"))?;
    // SAFETY: a call with integers alone.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid.cast_unsigned(), NICE) })
        .doing(|| format!("lowering the priority of process {pid}"))?;
    // Where sessions get their shares of the CPUs, a process is nice to others of its own session only.
    let path = format!("/proc/{pid}/autogroup");
    match fs::write(&path, NICE.to_string()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("writing {path}"))
        }
        _ => Ok(()),
    }
}

/// Sets a new child's limits. To be called by the child's own user, who needs no privilege for it.
fn limit(pid: i32, limits: &[(libc::__rlimit_resource_t, u64)]) -> Result<(), Failure> {
    for &(resource, value) in limits {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: the limit lives through the call, and the old one is not asked for.
        Errno::result(unsafe { libc::prlimit(pid, resource, &limit, ptr::null_mut()) })
            .doing(|| format!("limiting resource {resource} of process {pid}"))?;
    }
    Ok(())
}

/// Gives up, on this thread alone, everything root can do.
pub(super) fn drop_privileges(uid: u32, groups: &[u32], last_capability: u32) -> Result<(), Failure> {
    // The C library's wrappers would change every thread of the process, these calls change one.
    let call = |what: &'static str, number: libc::c_long, arguments: [libc::c_ulong; 5]| {
        let [a, b, c, d, e] = arguments;
        // SAFETY: called below with integers, and for setgroups with a pointer to as many groups as said.
        Errno::result(unsafe { libc::syscall(number, a, b, c, d, e) }).doing(|| what)
    };
    let id = libc::c_ulong::from(uid);
    for capability in 0..=libc::c_ulong::from(last_capability) {
        let option = libc::PR_CAPBSET_DROP as libc::c_ulong;
        call("dropping a capability", libc::SYS_prctl, [option, capability, 0, 0, 0])?;
    }
    let option = libc::PR_SET_NO_NEW_PRIVS as libc::c_ulong;
    call("forbidding new privileges", libc::SYS_prctl, [option, 1, 0, 0, 0])?;
    let count = groups.len() as libc::c_ulong;
    let list = groups.as_ptr() as libc::c_ulong;
    call("setting the groups", libc::SYS_setgroups, [count, list, 0, 0, 0])?;
    call("setting the group", libc::SYS_setresgid, [id, id, id, 0, 0])?;
    // Leaving root empties the permitted, effective and ambient sets of capabilities.
    call("setting the user", libc::SYS_setresuid, [id, id, id, 0, 0])?;
    Ok(())
}

pub(super) fn last_capability() -> Result<u32, Failure> {
    const PATH: &str = "/proc/sys/kernel/cap_last_cap";
    let text = fs::read_to_string(PATH).doing(|| format!("reading {PATH}"))?;
    text.trim().parse().map_err(io::Error::other).doing(|| format!("reading {PATH}"))
}

/// The argument and environment vectors of an execution.
struct Vectors {
    program: CString,
    argv: Vec<*mut libc::c_char>,
    environment: [*mut libc::c_char; 1],
    /// What `argv` points into.
    _owned: Vec<CString>,
}

impl Vectors {
    fn new(program: &Path, arguments: &[OsString]) -> Result<Self, Failure> {
        let terminated = |text: OsString| {
            CString::new(text.into_vec()).map_err(io::Error::from).doing(|| "passing an argument")
        };
        let program = terminated(program.as_os_str().to_owned())?;
        let owned = arguments.iter().cloned().map(terminated).collect::<Result<Vec<_>, _>>()?;
        let argv = std::iter::once(&program)
            .chain(&owned)
            .map(|text| text.as_ptr().cast_mut())
            .chain([ptr::null_mut()])
            .collect();
        Ok(Self { program, argv, environment: [ptr::null_mut()], _owned: owned })
    }
}

/// What happens to descriptors between fork and exec.
struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    /// `standard`: input, output and error.
    fn new(standard: [&OwnedFd; 3], given: &[OwnedFd]) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid value to be initialised by the call that follows.
        let mut actions = Self(unsafe { std::mem::zeroed() });
        // SAFETY: points to memory of the right type, initialised once, destroyed on drop.
        check(unsafe { libc::posix_spawn_file_actions_init(&mut actions.0) })?;
        // The numbers a program is given may be those of other descriptors here, that are yet to be
        // passed: first all go up beyond anything in use, then down to their places.
        let sources: Vec<RawFd> = standard.into_iter().chain(given).map(OwnedFd::as_raw_fd).collect();
        let above = sources.iter().copied().max().unwrap_or(0).max(sources.len() as RawFd) + 1;
        for (index, &source) in sources.iter().enumerate() {
            actions.duplicate(source, above + index as RawFd)?;
        }
        for index in 0..sources.len() as RawFd {
            actions.duplicate(above + index, index)?;
        }
        let first_unused = sources.len() as RawFd;
        // SAFETY: the value is initialised.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&mut actions.0, first_unused) })?;
        Ok(actions)
    }

    fn duplicate(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: the value is initialised; the numbers are only used in the child.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, from, to) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised once in `new`.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

/// A session of its own, no signal blocked, the default action for each.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        // SAFETY: all zeroes is a valid value to be initialised by the call that follows.
        let mut attributes = Self(unsafe { std::mem::zeroed() });
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: plain data; the sets are initialised by the calls below before they are used.
        let (mut none, mut all): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: each points to a live value of the right type; destroyed on drop.
        unsafe {
            check(libc::posix_spawnattr_init(&mut attributes.0))?;
            libc::sigemptyset(&mut none);
            libc::sigfillset(&mut all);
            check(libc::posix_spawnattr_setsigmask(&mut attributes.0, &none))?;
            check(libc::posix_spawnattr_setsigdefault(&mut attributes.0, &all))?;
            check(libc::posix_spawnattr_setflags(
                &mut attributes.0,
                flags as libc::c_short | libc::POSIX_SPAWN_SETSID,
            ))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised once in `new`.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

/// The posix_spawn family returns error numbers.
fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Numbers the descriptors that a program will be given.
#[derive(Default)]
pub struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// Its number in the program.
    pub fn give(&mut self, descriptor: impl Into<OwnedFd>) -> RawFd {
        self.0.push(descriptor.into());
        FIRST_DESCRIPTOR + self.0.len() as RawFd - 1
    }

    /// As [`give`](Self::give), of something that is needed here too.
    pub fn lend(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<RawFd> {
        Ok(self.give(descriptor.try_clone_to_owned()?))
    }

    pub fn into_inner(self) -> Vec<OwnedFd> {
        self.0
    }
}
