//! The page server of one machine: started before its VMM, watched for as long as that lives.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};

use super::{changes::Base, launch::Place};
use crate::{
    driver::DriverError,
    failure::{Doing as _, blocking},
    paths::{CapsulePaths, write_atomically},
    process::{VmmProcess, cgroup::Cgroups, launch::Launched},
    snapshot::Snapshot,
    uffd::{DEFAULT_WORKERS, MemorySource, PageServerConfig, PageServerHandle, PageServerRecord, Trouble},
};

/// How to start a page server: a program that calls [`uffd::run`](crate::uffd::run) with its last argument.
#[derive(Clone, Debug)]
pub struct PageServerCommand {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

/// For the VMM to connect: it is started right after the server.
const ACCEPT: Duration = Duration::from_secs(20);
/// What a restored guest touches in this time is its working set.
const RECORD_FOR: Duration = Duration::from_secs(5);
/// While a VMM is being started, a server that is so long at one thing has failed.
pub const RESTORING: Duration = Duration::from_secs(3);
/// Later somebody else may have the disk busy.
const SERVING: Duration = Duration::from_secs(20);
/// Between the end of a VMM and that of its server, whichever is seen first.
pub const MOMENT: Duration = Duration::from_secs(2);
/// How often it is asked whether the working set is recorded.
const ASK: Duration = Duration::from_millis(500);
/// Far more than the working set of any guest takes.
const LARGEST_SET: u64 = 16 << 20;
/// In [`CapsulePaths::vmm`], for the server has no other directory to write to.
const WORKING_SET: &str = "working-set";

/// Starts one for the memory in a machine's home; it ends with the answer.
pub async fn spawn(
    command: &PageServerCommand,
    place: &Place,
    snapshot: &Snapshot,
    log: File,
) -> Result<(PageServerHandle, Launched), DriverError> {
    let home = &place.home;
    let memory = match Base::of(home) {
        Base::Generations(directory) => MemorySource::Generations { directory },
        _ => MemorySource::Flat { file: home.memory() },
    };
    let working_set = home.vmm().join(WORKING_SET);
    if let Err(error) = take_over(&snapshot.working_set(), &working_set) {
        tracing::warn!(%error, "restoring without a working set");
    }
    let config = PageServerConfig {
        socket: home.vmm_run().join("pages.sock"),
        control: home.page_server_socket(),
        memory,
        prefetch: Some(working_set.clone()),
        record: Some(working_set),
        user: Some(place.slot.uid()),
        accept_within: ACCEPT,
        record_for: RECORD_FOR,
        workers: DEFAULT_WORKERS,
    };
    let handle = PageServerHandle::spawn(&command.program, &command.arguments, &config, log).await?;
    let guard = Launched::guard(handle.process().clone());
    Ok((handle, guard))
}

/// Holds it to what its machine may take of the host.
pub async fn confine(handle: &PageServerHandle, cgroups: &Cgroups, place: &Place) -> Result<(), DriverError> {
    let (pid, cgroups, slot, config) =
        (handle.process().identity().pid, cgroups.clone(), place.slot, place.config);
    Ok(blocking(move || cgroups.create(slot, &config)?.map_or(Ok(()), |group| group.add(pid))).await?)
}

/// A server whose VMM runs. While this is there its failure is the end of the VMM: a guest that waits for a page for
/// ever would be neither dead nor alive.
#[derive(Debug)]
pub struct PageServer {
    handle: PageServerHandle,
    vmm: VmmProcess,
    trouble: Arc<OnceLock<String>>,
    watch: Task,
    /// Brings the working set to the snapshot.
    keep: Option<Task>,
}

/// Ends with this value.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PageServer {
    pub fn watch(handle: PageServerHandle, vmm: VmmProcess) -> Self {
        let trouble = Arc::new(OnceLock::new());
        let watch = watch(handle.clone(), vmm.clone(), trouble.clone());
        Self { handle, vmm, trouble, watch, keep: None }
    }

    pub fn adopt(record: &PageServerRecord, vmm: VmmProcess) -> Result<Self, DriverError> {
        let handle = PageServerHandle::adopt(record)
            .map_err(|error| DriverError::PagesLost(format!("its page server: {error}")))?;
        Ok(Self::watch(handle, vmm))
    }

    /// Gives the working set of this restore to its snapshot, once it is recorded.
    pub fn keep_working_set(&mut self, home: &CapsulePaths, snapshot: &Snapshot) {
        let to = snapshot.working_set();
        if to.exists() {
            return;
        }
        // The home may get another name meanwhile.
        match File::open(home.vmm()) {
            Ok(directory) => self.keep = Some(Task(tokio::spawn(keep(self.handle.clone(), directory, to)))),
            Err(error) => tracing::warn!(%error, "the working set is not kept"),
        }
    }

    pub fn record(&self) -> PageServerRecord {
        self.handle.record()
    }

    /// Its socket has moved.
    pub fn set_home(&mut self, home: &CapsulePaths) {
        let record = PageServerRecord {
            socket: home.vmm_run().join("pages.sock"),
            control: home.page_server_socket(),
            ..self.handle.record()
        };
        match PageServerHandle::adopt(&record) {
            Ok(handle) => {
                self.watch = watch(handle.clone(), self.vmm.clone(), self.trouble.clone());
                self.handle = handle;
            }
            // It has ended, which the watch tells.
            Err(error) => tracing::warn!(%error, "taking up a page server whose home was renamed"),
        }
    }

    /// Answers why it is of no use, if it has ended or is at one thing for longer than this.
    pub async fn failed(&self, patience: Duration) -> String {
        describe(self.handle.trouble(patience).await)
    }

    /// What went wrong with it.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.get().map(String::as_str)
    }

    /// After its VMM.
    pub async fn end(self) -> Result<(), crate::failure::Failures> {
        let Self { handle, watch, keep, .. } = self;
        drop((watch, keep));
        handle.end().await
    }
}

fn watch(handle: PageServerHandle, vmm: VmmProcess, said: Arc<OnceLock<String>>) -> Task {
    Task(tokio::spawn(async move {
        let what = describe(handle.trouble(SERVING).await);
        // It also ends because its VMM has.
        if tokio::time::timeout(MOMENT, vmm.exited()).await.is_ok() {
            return;
        }
        tracing::error!(pid = vmm.identity().pid, what, "ending a VMM whose page server has failed");
        // The first trouble is the cause.
        let _ = said.set(what);
        if let Err(error) = vmm.kill().await {
            tracing::error!(pid = vmm.identity().pid, %error, "ending a VMM whose page server has failed");
        }
    }))
}

pub fn describe(trouble: Trouble) -> String {
    match trouble {
        Trouble::Exited(exit) => format!("the page server ended ({exit})"),
        Trouble::Hangs(why) => format!("the page server hangs: {why}"),
    }
}

async fn keep(handle: PageServerHandle, directory: File, to: PathBuf) {
    loop {
        match handle.stats(RESTORING).await {
            Ok(stats) if stats.recorded.is_some() => break,
            Ok(_) => sleep(ASK).await,
            Err(error) => return tracing::debug!(%error, "no working set"),
        }
    }
    let from = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(WORKING_SET);
    let copied = blocking(move || {
        let copied = copy(&from, &to);
        drop(directory);
        copied.doing(|| format!("keeping the working set in {}", to.display()))
    });
    if let Err(failure) = copied.await {
        tracing::warn!(error = %failure, cause = %failure.source, "the next restore will have no working set");
    }
}

/// Puts the set that a snapshot has where this life will record its own: until it has, that is the one to pass on.
fn take_over(known: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(known, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Puts the set of this life, if it has one, with a snapshot of it.
pub fn pass_on(home: &CapsulePaths, to: &Path) -> io::Result<()> {
    match copy(&home.vmm().join(WORKING_SET), to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// It was written by the machine's user, and is only a hint: what is in it is checked by who uses it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(from)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = Vec::new();
    file.take(LARGEST_SET + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST_SET {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // The snapshot may have been removed.
    fs::metadata(to.parent().unwrap_or(Path::new("/")))?;
    write_atomically(to, &content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::HostPaths;

    /// As a page server does, which makes a new file.
    fn record(home: &CapsulePaths, set: &str) {
        write_atomically(&home.vmm().join(WORKING_SET), set.as_bytes()).unwrap();
    }

    #[test]
    fn a_snapshot_has_the_set_of_the_last_life_that_recorded_one() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second, third] = ["first", "second", "third"].map(|name| directory.path().join(name));
        let home = HostPaths::new(directory.path()).unwrap().capsule(&"one".parse().unwrap());
        let life = |from: &Path| {
            fs::create_dir_all(home.vmm()).unwrap();
            take_over(from, &home.vmm().join(WORKING_SET)).unwrap();
        };
        let read = |of: &Path| fs::read_to_string(of).unwrap();

        life(&directory.path().join("golden"));
        pass_on(&home, &first).unwrap();
        assert!(!first.exists(), "there was none");
        record(&home, "recorded");
        pass_on(&home, &first).unwrap();
        fs::remove_dir_all(home.vmm()).unwrap();

        life(&first);
        pass_on(&home, &second).unwrap();
        assert_eq!(read(&second), "recorded", "by the life before");
        record(&home, "anew");
        pass_on(&home, &third).unwrap();
        assert_eq!([&first, &second, &third].map(|set| read(set)), ["recorded", "recorded", "anew"]);
    }
}
