//! One QEMU process.
//!
//! ```text
//!  start ─▶ vCPUs run ──stop_vcpus──▶ stopped ──save──▶ stopped
//!              ▲  └──────── resume_vcpus ─────┘
//!  adopt ──────┘ (or stopped, if the agent was lost in between)      terminate from anywhere
//! ```
//! QEMU stops the vCPUs, too, when the host has no room for what the guest writes: a [`Stall`]. Stopping them then as well only
//! keeps them from being let go on; what was not written is in the saved state, and is written by who runs on from it.

use std::{
    fs::{self, File},
    future::{Future, pending},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    MemoryRecord, QemuRecord, command,
    launch::{LOG_DESCRIPTOR, Plan, STATE_DESCRIPTOR, Started},
    mapping::Mapping,
    qmp::{Qmp, QmpError, RunState},
    stall::Stall,
};
use crate::{
    disk::try_clone,
    driver::{
        DriverError, DriverRecord, Machine, MachineConfig, MachineRecord, SaveReport, VmmIdentity,
        image::{SavedMemory, save_generation, save_into_clone, save_private, save_whole},
        merging::Merging,
    },
    failure::{Doing as _, Failure, Teardown, blocking},
    memory::Generations,
    network::SlotNumber,
    paths::CapsulePaths,
    process::{
        ProcessExit, VmmProcess,
        cgroup::Cgroups,
        output::{descriptor_of, last_words},
    },
    snapshot::{Snapshot, SnapshotFiles, SnapshotWriter},
};

/// Between the end of a connection to QEMU and the end of QEMU.
const MOMENT: Duration = Duration::from_secs(1);
/// For QEMU to greet an agent that comes back. One that does not is ended, so it may take as long as a host that has much to
/// do makes it.
const ADOPTION: Duration = Duration::from_secs(60);

pub struct QemuMachine {
    process: VmmProcess,
    qmp: Qmp,
    /// From `stop_vcpus` to `resume_vcpus`.
    halted: bool,
    /// As far as it was noticed.
    stall: Option<Stall>,
    log: OwnedFd,
    /// The file that QEMU writes its device state to.
    state: OwnedFd,
    memory: MemoryRecord,
    identity: VmmIdentity,
    config: MachineConfig,
    slot: SlotNumber,
    home: CapsulePaths,
    /// Id of the snapshot that it was restored from.
    parent: Option<String>,
    /// Of the generations its memory is based on.
    merging: Option<Merging>,
    cgroups: Cgroups,
}

impl QemuMachine {
    /// Starts it, and waits until its vCPUs run.
    pub async fn start(plan: Plan, identity: VmmIdentity, deadline: Duration) -> Result<Self, DriverError> {
        let (config, slot, home) = (plan.config, plan.slot, plan.home.clone());
        let cgroups = plan.launcher.cgroups.clone();
        let started = blocking(move || plan.start()).await;
        let result = match started {
            Ok(started) => {
                let place = (slot, home.clone(), cgroups.clone());
                Self::take_charge(started, identity, config, place, deadline).await
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            let cleared = blocking(move || {
                let mut teardown = Teardown::default();
                home.clear_machine(&mut teardown);
                cgroups.clear(slot, &mut teardown);
                teardown.finish()
            });
            if let Err(failures) = cleared.await {
                tracing::warn!(%slot, %failures, "undoing the start of a machine");
            }
        }
        result
    }

    async fn take_charge(
        started: Started,
        identity: VmmIdentity,
        config: MachineConfig,
        (slot, home, cgroups): (SlotNumber, CapsulePaths, Cgroups),
        deadline: Duration,
    ) -> Result<Self, DriverError> {
        let Started { process: launched, memory, log, state } = started;
        let process = launched.process().clone();
        let ready = async {
            let mut qmp = Qmp::connect(&home.qmp_socket()).await?;
            qmp.until_running().await?;
            Ok(qmp)
        };
        match supervise(&process, &log, "starting the machine", deadline, ready).await {
            Ok(qmp) => {
                launched.keep();
                let merging = matches!(memory, MemoryRecord::Generations { .. })
                    .then(|| Merging::start(home.generations()));
                Ok(Self {
                    process,
                    qmp,
                    halted: false,
                    stall: None,
                    log,
                    state,
                    memory,
                    identity,
                    config,
                    slot,
                    home,
                    parent: None,
                    merging,
                    cgroups,
                })
            }
            Err(error) => {
                process.kill().await?;
                Err(error)
            }
        }
    }

    pub fn restored_from(self, snapshot: &Snapshot) -> Self {
        Self { parent: Some(snapshot.id().to_owned()), ..self }
    }

    /// Takes up one that runs.
    pub async fn adopt(
        process: VmmProcess,
        record: &MachineRecord,
        qemu: &QemuRecord,
        cgroups: Cgroups,
    ) -> Result<Self, DriverError> {
        let pid = record.process.pid;
        let log = descriptor_of(pid, LOG_DESCRIPTOR)?;
        let state = descriptor_of(pid, STATE_DESCRIPTOR)?;
        let socket = record.home.qmp_socket();
        let ready = async {
            let mut qmp = Qmp::connect(&socket).await?;
            let run_state = qmp.status().await?;
            Ok((qmp, run_state))
        };
        let (qmp, run_state) = supervise(&process, &log, "taking the machine up", ADOPTION, ready).await?;
        Ok(Self {
            process,
            qmp,
            halted: false,
            stall: (run_state == RunState::IoError).then(|| Stall::since(tokio::time::Instant::now())),
            log,
            state,
            memory: qemu.memory,
            identity: record.identity.clone(),
            config: record.config,
            slot: record.slot,
            home: record.home.clone(),
            parent: record.parent.clone(),
            merging: None,
            cgroups,
        })
    }

    /// A failed command of a QEMU that has ended is the end of QEMU.
    async fn explain(&self, during: &'static str, source: QmpError) -> DriverError {
        explain(&self.process, &self.log, during, source).await
    }

    /// `base_is_there`: what was done by [`Machine::prepare_save`].
    fn save_memory(
        &self,
        base_is_there: bool,
    ) -> impl FnOnce(&SnapshotFiles) -> Result<SavedMemory, DriverError> + Send + 'static {
        let (base, generations) = (self.home.memory(), self.home.generations());
        let (pid, bytes, memory) = (self.process.identity().pid, self.config.memory_bytes(), self.memory);
        move |into| match memory {
            MemoryRecord::File => save_whole(&base, &into.memory),
            MemoryRecord::Private { inode } => {
                let save = if base_is_there { save_into_clone } else { save_private };
                save(&Mapping::find(pid, inode, bytes)?, &base, into)
            }
            MemoryRecord::Generations { inode } => {
                let base = Generations::open(&generations)?;
                save_generation(&Mapping::find(pid, inode, bytes)?, &base, into)
            }
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn record(&self) -> MachineRecord {
        MachineRecord {
            process: self.process.identity().clone(),
            identity: self.identity.clone(),
            config: self.config,
            slot: self.slot,
            home: self.home.clone(),
            parent: self.parent.clone(),
            driver: DriverRecord::Qemu(QemuRecord { memory: self.memory }),
        }
    }

    fn process(&self) -> &VmmProcess {
        &self.process
    }

    async fn outlast_stall(&mut self) -> Duration {
        if self.halted {
            return pending().await;
        }
        // Kept, so that it is still the same one when this is given up and begun again.
        let stall = match &mut self.stall {
            Some(stall) => stall,
            none => {
                let stall = none.insert(Stall::begins(&mut self.qmp).await);
                tracing::warn!(
                    "the host has no room for what the guest writes: it stands still until there is"
                );
                stall
            }
        };
        let stood = stall.outlast(&mut self.qmp).await;
        self.stall = None;
        tracing::info!(?stood, "there is room again: the guest goes on");
        stood
    }

    fn is_stalled(&self) -> bool {
        self.stall.is_some()
    }

    async fn stop_vcpus(&mut self) -> Result<(), DriverError> {
        // A save reads what is being merged. Its end is waited for while the guest still runs.
        if let Some(merging) = &mut self.merging {
            merging.end().await;
        }
        self.halted = true;
        // QEMU drains and flushes its block devices before it answers.
        match self.qmp.stop().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain("stopping the vCPUs", error).await),
        }
    }

    async fn resume_vcpus(&mut self) -> Result<(), DriverError> {
        match self.qmp.resume().await {
            Ok(()) => {
                (self.halted, self.stall) = (false, None);
                Ok(())
            }
            Err(error) => Err(self.explain("letting the vCPUs run", error).await),
        }
    }

    async fn prepare_save(&mut self, into: &mut SnapshotWriter) -> Result<(), DriverError> {
        // What a guest shares with its file changes all the time; the base of a private mapping never does.
        if let MemoryRecord::Private { .. } = self.memory {
            let (base, to) = (self.home.memory(), into.memory_path());
            // Where files share no blocks only what changes is written, later.
            if blocking(move || try_clone(&base, &to)).await? {
                into.set_base_is_there();
            }
        }
        Ok(())
    }

    async fn save(&mut self, into: &mut SnapshotWriter) -> Result<SaveReport, DriverError> {
        let begun = Instant::now();
        let file = command::path_of(STATE_DESCRIPTOR);
        if let Err(error) = self.qmp.save_devices(&file).await {
            return Err(self.explain("saving the devices' state", error).await);
        }
        let state = self.state.try_clone().doing(|| "reading the devices' state")?;
        let save_memory = self.save_memory(into.base_is_there());
        let (state_path, files) = (into.state_path(), into.files());
        let saved = blocking(move || -> Result<_, DriverError> {
            copy_state(state, &state_path)?;
            let state_done = Instant::now();
            Ok((save_memory(&files)?, state_done))
        });
        let (SavedMemory { written_bytes, layout }, state_done) = saved.await?;
        let memory_took = state_done.elapsed();
        into.set_parent(self.parent.clone());
        let state_bytes = into.saved(self.identity.clone(), self.config, layout)?;
        let state_took = state_done - begun;
        Ok(SaveReport { memory_written_bytes: written_bytes, state_bytes, memory_took, state_took })
    }

    fn set_home(&mut self, home: CapsulePaths) {
        self.home = home;
    }

    async fn console(&mut self) -> Result<String, DriverError> {
        match self.qmp.read_ring(command::CONSOLE, command::CONSOLE_SIZE).await {
            Ok(text) => Ok(text),
            Err(error) => Err(self.explain("reading the console", error).await),
        }
    }

    fn last_words(&self) -> String {
        last_words(&self.log)
    }

    async fn terminate(mut self: Box<Self>) -> Result<(), DriverError> {
        self.process.kill().await?;
        if let Some(merging) = &mut self.merging {
            merging.end().await;
        }
        let (home, cgroups, slot) = (self.home.clone(), self.cgroups.clone(), self.slot);
        let cleared = blocking(move || {
            let mut teardown = Teardown::default();
            home.clear_machine(&mut teardown);
            cgroups.clear(slot, &mut teardown);
            teardown.finish()
        });
        Ok(cleared.await?)
    }
}

/// Waits for something of QEMU, but not beyond its end nor the deadline.
async fn supervise<T>(
    process: &VmmProcess,
    log: &OwnedFd,
    during: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, QmpError>>,
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

async fn explain(process: &VmmProcess, log: &OwnedFd, during: &'static str, source: QmpError) -> DriverError {
    if matches!(source, QmpError::Closed | QmpError::Io(_))
        && let Ok(exit) = timeout(MOMENT, process.exited()).await
    {
        return ended(log, during, exit);
    }
    DriverError::Qmp { during, source }
}

fn ended(log: &OwnedFd, during: &'static str, exit: ProcessExit) -> DriverError {
    DriverError::Ended { during, exit, stderr: last_words(log) }
}

/// Never more than any device state can be, as the VMM may have written anything.
fn copy_state(state: OwnedFd, to: &Path) -> Result<(), Failure> {
    let doing = || format!("writing {}", to.display());
    let state = File::from(state);
    let size = state.metadata().doing(doing)?.size();
    if size > crate::snapshot::STATE_LIMIT {
        let error = std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("{size} bytes"));
        return Err(Failure::new(doing(), error));
    }
    let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
    state.read_exact_at(&mut content, 0).doing(doing)?;
    fs::write(to, content).doing(doing)
}
