//! One Firecracker process.
//!
//! ```text
//!  boot: configure, start ────────────┐
//!  restore: load, tell it its ────────┤
//!  metadata, let it run               ▼
//!                                vCPUs run ──stop_vcpus──▶ stopped ──save──▶ stopped
//!                                     ▲  └──────── resume_vcpus ─────┘
//!  adopt ─────────────────────────────┘ (or stopped, if the agent was lost in between)      terminate from anywhere
//! ```
//! Where a page server has its memory, the two end together: see [`super::pages`].

use std::{
    future::Future,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    FirecrackerRecord,
    api::{ApiError, Firecracker, SnapshotCreate, SnapshotType},
    changes::{self, Base},
    launch::{self, CONSOLE_DESCRIPTOR, LOG_DESCRIPTOR, Output},
    model::{SAVED, metadata},
    pages::{self, PageServer},
};
use crate::{
    disk::{try_clone, write_out},
    driver::{
        DriverError, DriverRecord, Machine, MachineConfig, MachineRecord, SaveReport, VmmIdentity,
        image::SavedMemory, merging::Merging,
    },
    failure::{Doing as _, Failure, Failures, blocking},
    network::SlotNumber,
    paths::CapsulePaths,
    process::{
        ProcessExit, VmmProcess,
        cgroup::Cgroups,
        output::{descriptor_of, last_words, written},
    },
    snapshot::SnapshotWriter,
};

/// Between the end of a connection to Firecracker and the end of Firecracker.
const MOMENT: Duration = Duration::from_secs(1);
/// For Firecracker to answer an agent that comes back; it may be writing a snapshot for the one before.
const ADOPTION: Duration = Duration::from_secs(60);
/// For what has changed to be written to a disk that may be busy.
const SAVING: Duration = Duration::from_secs(300);
/// How much of the console is answered.
const CONSOLE_TAIL: usize = 64 << 10;

pub struct FirecrackerMachine {
    pub(super) process: VmmProcess,
    pub(super) api: Firecracker,
    pub(super) output: Output,
    pub(super) pages: Option<PageServer>,
    pub(super) identity: VmmIdentity,
    pub(super) config: MachineConfig,
    pub(super) slot: SlotNumber,
    pub(super) home: CapsulePaths,
    /// Id of the snapshot that it was restored from.
    pub(super) parent: Option<String>,
    pub(super) template: Option<String>,
    /// The disk, if it is a device.
    pub(super) device: Option<PathBuf>,
    /// Of the next save.
    pub(super) number: u64,
    /// Of the generations its memory is based on.
    pub(super) merging: Option<Merging>,
    pub(super) cgroups: Cgroups,
    /// The guest's metadata are those of another home.
    pub(super) renamed: bool,
}

impl FirecrackerMachine {
    /// Takes up one that runs.
    pub async fn adopt(
        process: VmmProcess,
        record: &MachineRecord,
        firecracker: &FirecrackerRecord,
        cgroups: Cgroups,
    ) -> Result<Self, DriverError> {
        let home = record.home.clone();
        let pid = record.process.pid;
        let output = Output {
            console: descriptor_of(pid, CONSOLE_DESCRIPTOR)?,
            log: descriptor_of(pid, LOG_DESCRIPTOR)?,
        };
        let pages = firecracker.page_server.as_ref();
        let pages = pages.map(|pages| PageServer::adopt(pages, process.clone())).transpose()?;
        let api = Firecracker::new(home.api_socket());
        // It answers when it is done with what another agent asked of it.
        let answer = api.instance_info_within(ADOPTION);
        supervise(&process, &output.log, "taking the machine up", ADOPTION, answer).await?;
        let numbered = home.clone();
        let number = blocking(move || changes::next_number(&numbered)).await?;
        Ok(Self {
            process,
            api,
            output,
            pages,
            identity: record.identity.clone(),
            config: record.config,
            slot: record.slot,
            home,
            parent: record.parent.clone(),
            template: firecracker.template.clone(),
            device: firecracker.device.clone(),
            number,
            merging: None,
            cgroups,
            // The agent may have ended between the two.
            renamed: true,
        })
    }

    /// Merges what its memory is based on, if there are many, for as long as the vCPUs run.
    pub(super) fn merge(&mut self) {
        if self.merging.is_none()
            && let Base::Generations(directory) = Base::of(&self.home)
        {
            self.merging = Some(Merging::start(directory));
        }
    }

    async fn end_merging(&mut self) {
        if let Some(mut merging) = self.merging.take() {
            merging.end().await;
        }
    }

    /// A failed request to a Firecracker that has ended is the end of Firecracker.
    async fn explain(&self, during: &'static str, source: ApiError) -> DriverError {
        explain(&self.process, &self.output.log, during, source).await
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
    fn record(&self) -> MachineRecord {
        let page_server = self.pages.as_ref().map(PageServer::record);
        MachineRecord {
            process: self.process.identity().clone(),
            identity: self.identity.clone(),
            config: self.config,
            slot: self.slot,
            home: self.home.clone(),
            parent: self.parent.clone(),
            driver: DriverRecord::Firecracker(FirecrackerRecord {
                page_server,
                template: self.template.clone(),
                device: self.device.clone(),
            }),
        }
    }

    fn process(&self) -> &VmmProcess {
        &self.process
    }

    async fn starves(&self, patience: Duration) -> String {
        match &self.pages {
            Some(pages) => pages.failed(patience).await,
            None => std::future::pending().await,
        }
    }

    async fn stop_vcpus(&mut self) -> Result<(), DriverError> {
        // A save reads what is being merged. Its end is waited for while the guest still runs.
        self.end_merging().await;
        // A request of the guest's that the disk's device has not seen yet is still in the guest's queue, and is
        // carried out by whoever runs on from the saved state.
        if let Err(error) = self.api.pause().await {
            return Err(self.explain("stopping the vCPUs", error).await);
        }
        // What is in the cache of a device is not yet in the files behind it.
        if let Some(device) = self.device.clone() {
            blocking(move || write_out(&device)).await?;
        }
        Ok(())
    }

    async fn resume_vcpus(&mut self) -> Result<(), DriverError> {
        if self.renamed {
            let content = metadata(&self.home.name(), self.template.as_deref());
            if let Err(error) = self.api.mmds(&content).await {
                return Err(self.explain("telling the guest its metadata", error).await);
            }
            self.renamed = false;
        }
        match self.api.resume().await {
            Ok(()) => {
                self.merge();
                Ok(())
            }
            Err(error) => Err(self.explain("letting the vCPUs run", error).await),
        }
    }

    async fn prepare_save(&mut self, into: &mut SnapshotWriter) -> Result<(), DriverError> {
        if let Base::Flat(base) = Base::of(&self.home) {
            let to = into.memory_path();
            // Where files share no blocks only what changes is written, later.
            if blocking(move || try_clone(&base, &to)).await? {
                into.set_base_is_there();
            }
        }
        Ok(())
    }

    async fn save(&mut self, into: &mut SnapshotWriter) -> Result<SaveReport, DriverError> {
        let begun = Instant::now();
        let number = self.number;
        // Whatever becomes of it, no other save may write to the same files.
        self.number += 1;
        let [state, memory] = changes::names(number).map(|name| format!("{SAVED}/{name}").into());
        let request =
            SnapshotCreate { snapshot_type: SnapshotType::Diff, snapshot_path: state, mem_file_path: memory };
        if let Err(error) = self.api.create_snapshot(&request, SAVING).await {
            return Err(self.explain("saving the machine", error).await);
        }
        let state_took = begun.elapsed();
        let (home, bytes) = (self.home.clone(), self.config.memory_bytes());
        let (files, state, base_is_there) = (into.files(), into.state_path(), into.base_is_there());
        let working_set = into.working_set_path();
        let saved = blocking(move || {
            changes::take_in(&home)?;
            changes::take_state(&home, number, &state)?;
            if let Err(error) = pages::pass_on(&home, &working_set) {
                tracing::warn!(%error, "the snapshot has no working set");
            }
            changes::save(&home, bytes, &files, base_is_there)
        });
        let SavedMemory { written_bytes, layout } = saved.await?;
        into.set_parent(self.parent.clone());
        let state_bytes = into.saved(self.identity.clone(), self.config, layout)?;
        Ok(SaveReport {
            memory_written_bytes: written_bytes,
            state_bytes,
            memory_took: begun.elapsed() - state_took,
            state_took,
        })
    }

    fn set_home(&mut self, home: CapsulePaths) {
        self.api = Firecracker::new(home.api_socket());
        if let Some(pages) = &mut self.pages {
            pages.set_home(&home);
        }
        self.home = home;
        self.renamed = true;
    }

    async fn console(&mut self) -> Result<String, DriverError> {
        let text = written(&self.output.console).doing(|| "reading the console")?;
        let start = text.len().saturating_sub(CONSOLE_TAIL);
        Ok(String::from_utf8_lossy(&text[start..]).into_owned())
    }

    fn last_words(&self) -> String {
        let trouble = self.pages.as_ref().and_then(PageServer::trouble).unwrap_or_default().to_owned();
        // Why a vCPU ended it Firecracker says where the guest's console goes.
        let console = match self.process.has_exited() {
            Some(_) => last_words(&self.output.console),
            None => String::new(),
        };
        let mut said = vec![trouble, last_words(&self.output.log), console];
        said.retain(|words| !words.is_empty());
        said.join("; ")
    }

    async fn terminate(mut self: Box<Self>) -> Result<(), DriverError> {
        self.process.kill().await?;
        self.end_merging().await;
        let mut left = Vec::new();
        if let Some(pages) = self.pages.take()
            && let Err(Failures(failures)) = pages.end().await
        {
            left.extend(failures);
        }
        let (home, cgroups, slot) = (self.home.clone(), self.cgroups.clone(), self.slot);
        if let Err(Failures(failures)) = blocking(move || launch::clear(&home, slot, &cgroups)).await {
            left.extend(failures);
        }
        if left.is_empty() { Ok(()) } else { Err(Failures(left).into()) }
    }
}

/// Waits for something of Firecracker, but not beyond its end nor the deadline.
pub async fn supervise<T>(
    process: &VmmProcess,
    log: &OwnedFd,
    during: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, DriverError> {
    let outcome = timeout(deadline, async {
        tokio::select! {
            biased;
            done = work => Ok(done),
            exit = process.exited() => Err(exit),
        }
    });
    match outcome.await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(source))) => Err(explain(process, log, during, source).await),
        Ok(Err(exit)) => Err(ended(log, during, exit)),
        Err(_) => Err(DriverError::Deadline { during, after: deadline, stderr: last_words(log) }),
    }
}

async fn explain(process: &VmmProcess, log: &OwnedFd, during: &'static str, source: ApiError) -> DriverError {
    if matches!(source, ApiError::Connect { .. } | ApiError::Exchange { .. })
        && let Ok(exit) = timeout(MOMENT, process.exited()).await
    {
        return ended(log, during, exit);
    }
    DriverError::Firecracker { during, source }
}

fn ended(log: &OwnedFd, during: &'static str, exit: ProcessExit) -> DriverError {
    DriverError::Ended { during, exit, stderr: last_words(log) }
}

/// Waits until a Firecracker that was just started takes requests, and takes its socket out of its reach: nobody else
/// is ever spoken to through it.
pub async fn connect(home: &CapsulePaths) -> Result<Firecracker, ApiError> {
    const PAUSE: Duration = Duration::from_millis(2);
    let first = Firecracker::new(home.vmm_run().join("api.sock"));
    while let Err(error) = first.instance_info().await {
        match error {
            ApiError::Connect { .. } => tokio::time::sleep(PAUSE).await,
            error => return Err(error),
        }
    }
    let socket = home.api_socket();
    let moved = blocking({
        let (from, to) = (first.socket().to_owned(), socket.clone());
        move || take_socket(&from, &to)
    });
    match moved.await {
        Ok(()) => Ok(Firecracker::new(socket)),
        Err(Failure { source, .. }) => Err(ApiError::Connect { socket, source }),
    }
}

fn take_socket(from: &std::path::Path, to: &std::path::Path) -> Result<(), Failure> {
    use std::os::unix::fs::FileTypeExt as _;

    let doing = || format!("moving {}", from.display());
    std::fs::rename(from, to).doing(doing)?;
    if std::fs::symlink_metadata(to).doing(doing)?.file_type().is_socket() {
        return Ok(());
    }
    Err(Failure::new(doing(), io::Error::from(io::ErrorKind::InvalidData)))
}
