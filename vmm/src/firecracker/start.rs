//! Starts machines: from nothing, or from a snapshot, whose memory is mapped or served.
//!
//! ```text
//!  link the snapshot's memory into the home
//!        │
//!        ▼           the page server failed, or nothing was heard in time; a few times
//!  ┌─▶ attempt ──────────────────────────────────────────────────────────┐
//!  │     ├── vCPUs run ▶ done                                            │
//!  │     └── any other error ▶ all undone                                ▼
//!  └───────────────────────────────────── both processes are ended, what they made is removed
//! ```

use std::time::{Duration, Instant};

use super::{
    RestoreChoice,
    api::{ApiError, Firecracker, MemoryBackend, MemoryBackendType, SnapshotLoad},
    changes,
    launch::{Launcher, Origin, Output, Place},
    machine::{FirecrackerMachine, connect, supervise},
    model::{MEMORY, PAGES_SOCKET, STATE, configure, metadata},
    pages::{self, PageServer, PageServerCommand},
};
use crate::{
    driver::{
        DriverError, KernelImage, VmmIdentity,
        base::{link_flat, link_generations, open_up},
    },
    failure::{Doing as _, blocking},
    process::ProcessExit,
    snapshot::{MemoryLayout, Snapshot},
    uffd::{PageServerHandle, Trouble},
};

/// How often a restore is tried whose page server fails.
const ATTEMPTS: u32 = 3;

/// All that starting a machine takes, but where it comes from.
pub struct Starter<'a> {
    pub launcher: &'a Launcher,
    pub place: Place,
    pub identity: VmmIdentity,
    pub template: Option<&'a str>,
    pub deadline: Duration,
}

/// How a restored machine gets its memory.
#[derive(Clone, Copy, Debug)]
pub enum Way<'a> {
    Mapped,
    Served(&'a PageServerCommand),
}

impl<'a> Way<'a> {
    /// What is chosen, or what is better for such a memory: a flat one is mapped, because all machines that are
    /// restored from it then share the host's copy of it, and no other process is needed; one in generations would have to
    /// be put together first, and is served.
    pub fn choose(
        choice: RestoreChoice,
        command: Option<&'a PageServerCommand>,
        memory: &MemoryLayout,
    ) -> Result<Self, DriverError> {
        let served = match choice {
            RestoreChoice::File => false,
            RestoreChoice::Uffd => true,
            RestoreChoice::Auto => {
                command.is_some()
                    && super::faults_can_be_served()
                    && matches!(memory, MemoryLayout::Generations { .. })
            }
        };
        match (served, command) {
            (false, _) => Ok(Self::Mapped),
            (true, Some(command)) => Ok(Self::Served(command)),
            (true, None) => {
                Err(DriverError::NoVmm("restoring by page server: no program for it is known".to_owned()))
            }
        }
    }
}

/// Memory that a page server is to bring.
#[derive(Clone, Copy)]
struct Served<'a> {
    command: &'a PageServerCommand,
    snapshot: &'a Snapshot,
    /// For how long the server may give no answer.
    silence: Duration,
}

impl Starter<'_> {
    /// From nothing.
    pub async fn boot(self, kernel: &KernelImage) -> Result<FirecrackerMachine, DriverError> {
        let prepared = self.prepare(None).await;
        let origin = Origin::Boot(kernel.clone());
        let content = metadata(&self.place.home.name(), None);
        let begin = async |api: &Firecracker| {
            configure(api, self.place.config).await?;
            api.mmds(&content).await?;
            api.start().await
        };
        let booted = match prepared {
            Ok(()) => self.attempt(&origin, None, self.deadline, begin).await,
            Err(error) => Err(error),
        };
        self.conclude(booted).await
    }

    /// From a snapshot. As often as it takes, if its page server fails.
    pub async fn restore(self, snapshot: &Snapshot, way: Way<'_>) -> Result<FirecrackerMachine, DriverError> {
        let begun = Instant::now();
        let mut attempt = 1;
        let restored = loop {
            let left = self.deadline.saturating_sub(begun.elapsed());
            let may_fail = matches!(way, Way::Served(_)) && attempt < ATTEMPTS;
            // Time enough must be left for what is tried next.
            let patience = if may_fail { left / 2 } else { left };
            // What takes a server too long may only be a busy machine: the next one gets more time.
            let silence = pages::RESTORING * 2_u32.pow(attempt - 1);
            let restored = self.restore_once(snapshot, way, patience, silence).await;
            match restored {
                Err(error) if may_fail && is_of_pages(&error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, attempt, "a restore is tried again");
                }
                restored => break restored,
            }
            attempt += 1;
        };
        let machine = self.conclude(restored).await?;
        Ok(FirecrackerMachine { parent: Some(snapshot.id().to_owned()), ..machine })
    }

    async fn restore_once(
        &self,
        snapshot: &Snapshot,
        way: Way<'_>,
        patience: Duration,
        silence: Duration,
    ) -> Result<FirecrackerMachine, DriverError> {
        // Of the attempt before.
        self.clear().await?;
        self.prepare(Some((snapshot, way))).await?;
        let (origin, backend_type, backend_path) = match way {
            Way::Mapped => (Origin::Mapped(snapshot.state()), MemoryBackendType::File, MEMORY),
            Way::Served(_) => (Origin::Served(snapshot.state()), MemoryBackendType::Uffd, PAGES_SOCKET),
        };
        let load = SnapshotLoad {
            snapshot_path: STATE.into(),
            mem_backend: MemoryBackend { backend_type, backend_path: backend_path.into() },
            track_dirty_pages: true,
            resume_vm: false,
            network_overrides: Vec::new(),
        };
        let content = metadata(&self.place.home.name(), self.template);
        let begin = async |api: &Firecracker| {
            api.load_snapshot(&load, patience).await?;
            // Before the guest can ask for them.
            api.mmds(&content).await?;
            api.resume().await
        };
        match way {
            Way::Mapped => self.attempt(&origin, None, patience, begin).await,
            Way::Served(command) => {
                let served = Served { command, snapshot, silence };
                self.attempt(&origin, Some(served), patience, begin).await
            }
        }
    }

    /// Makes what the machine needs in its home.
    async fn prepare(&self, from: Option<(&Snapshot, Way<'_>)>) -> Result<(), DriverError> {
        let place = self.place.clone();
        let from = from.map(|(snapshot, way)| (snapshot.clone(), matches!(way, Way::Mapped)));
        blocking(move || {
            place.prepare()?;
            let Some((snapshot, mapped)) = from else { return Ok(()) };
            match snapshot.manifest().memory {
                MemoryLayout::Flat { .. } => link_flat(&snapshot, &place.home)?,
                MemoryLayout::Generations { .. } => {
                    let base = link_generations(&snapshot, &place.home)?;
                    if mapped {
                        base.flatten(&place.home.memory())?;
                    }
                }
            }
            if mapped {
                open_up(&place.home.memory())?;
            }
            Ok(())
        })
        .await
    }

    /// Starts a VMM, with a page server before it if one is wanted, and has it `begin`. On error neither runs.
    async fn attempt(
        &self,
        origin: &Origin,
        served: Option<Served<'_>>,
        patience: Duration,
        begin: impl AsyncFnOnce(&Firecracker) -> Result<(), ApiError>,
    ) -> Result<FirecrackerMachine, DriverError> {
        const DURING: &str = "starting the machine";
        let output = Place::output()?;
        let pages = match served {
            None => None,
            Some(Served { command, snapshot, silence }) => {
                let log = output.log.try_clone().doing(|| "giving a log")?;
                let (handle, guard) = pages::spawn(command, &self.place, snapshot, log.into()).await?;
                Some((handle, guard, silence))
            }
        };
        let (place, launcher, origin) = (self.place.clone(), self.launcher.clone(), origin.clone());
        let (launched, output) = blocking(move || {
            let launched = place.start(&launcher, &origin, &output);
            (launched, output)
        })
        .await;
        let launched = launched?;
        let process = launched.process().clone();
        let ready = async {
            let api = connect(&self.place.home).await?;
            begin(&api).await?;
            Ok(api)
        };
        let supervised = supervise(&process, &output.log, DURING, patience, ready);
        let outcome = match &pages {
            None => supervised.await,
            Some((handle, _, silence)) => {
                pages::confine(handle, &self.launcher.cgroups, &self.place).await?;
                or_trouble(handle, *silence, supervised).await
            }
        };
        let api = match outcome {
            Ok(api) => api,
            Err(error) => {
                process.kill().await?;
                if let Some((handle, ..)) = pages {
                    handle.end().await?;
                }
                return Err(error);
            }
        };
        launched.keep();
        let pages = pages.map(|(handle, guard, _)| {
            guard.keep();
            PageServer::watch(handle, process.clone())
        });
        self.machine(process, api, output, pages, served.map(|served| served.snapshot))
    }

    fn machine(
        &self,
        process: crate::process::VmmProcess,
        api: Firecracker,
        output: Output,
        mut pages: Option<PageServer>,
        snapshot: Option<&Snapshot>,
    ) -> Result<FirecrackerMachine, DriverError> {
        let home = self.place.home.clone();
        if let (Some(pages), Some(snapshot)) = (&mut pages, snapshot) {
            pages.keep_working_set(&home, snapshot);
        }
        let mut machine = FirecrackerMachine {
            process,
            api,
            output,
            pages,
            identity: self.identity.clone(),
            config: self.place.config,
            slot: self.place.slot,
            number: changes::FIRST,
            home,
            parent: None,
            template: self.template.map(str::to_owned),
            device: self.place.device(),
            merging: None,
            cgroups: self.launcher.cgroups.clone(),
            renamed: false,
        };
        machine.merge();
        Ok(machine)
    }

    async fn clear(&self) -> Result<(), DriverError> {
        let (place, cgroups) = (self.place.clone(), self.launcher.cgroups.clone());
        Ok(blocking(move || place.clear(&cgroups)).await?)
    }

    /// Nothing is left of what failed.
    async fn conclude(
        &self,
        started: Result<FirecrackerMachine, DriverError>,
    ) -> Result<FirecrackerMachine, DriverError> {
        if started.is_err()
            && let Err(error) = self.clear().await
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(slot = %self.place.slot, error, "undoing the start of a machine");
        }
        started
    }
}

/// What a page server that fails, or is silent for so long, leaves waiting is given up.
async fn or_trouble<T>(
    handle: &PageServerHandle,
    silence: Duration,
    work: impl Future<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    let refused = tokio::select! {
        biased;
        done = work => match done {
            Err(error @ DriverError::Firecracker { source: ApiError::Refused { .. }, .. }) => error,
            done => return done,
        },
        trouble = handle.trouble(silence) => return Err(DriverError::PagesLost(pages::describe(trouble))),
    };
    // The VMM may be the first to see that its server has failed. One that ends because the VMM did ends well.
    match tokio::time::timeout(pages::MOMENT, handle.exited()).await {
        Ok(exit) if exit != ProcessExit::Code(0) => {
            Err(DriverError::PagesLost(pages::describe(Trouble::Exited(exit))))
        }
        _ => Err(refused),
    }
}

/// Whether a page server is, or may be, why.
fn is_of_pages(error: &DriverError) -> bool {
    matches!(
        error,
        DriverError::PagesLost(_)
            | DriverError::PageServer(_)
            | DriverError::Deadline { .. }
            | DriverError::Firecracker { source: ApiError::Deadline { .. }, .. }
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, sync::Arc};

    use super::*;
    use crate::{
        disk::{self, DiskOptions, DiskStoreChoice, DiskStoreKind, DiskView},
        driver::MachineConfig,
        firecracker::version::Version,
        network::{NetworkOptions, SlotAllocator},
        paths::HostPaths,
        process::{cgroup::Cgroups, jail::EmptyNamespace},
    };

    /// All of a start that needs no KVM: the program runs in its jail, finds what it was given, and takes the machine.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_jailed_firecracker_takes_the_machine_it_is_told() {
        let Some(program) = std::env::var_os("WRENN_FIRECRACKER_BIN").map(PathBuf::from) else {
            assert!(std::env::var_os("WRENN_TEST_HOST").is_none(), "WRENN_FIRECRACKER_BIN is not set");
            eprintln!("\nDID NOT RUN: a jailed Firecracker: WRENN_FIRECRACKER_BIN is not set\n");
            return;
        };
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let paths = HostPaths::new(directory.path()).unwrap();
        let choice = DiskStoreChoice::Only(DiskStoreKind::Copy);
        let store = disk::prepare(&paths, &DiskOptions { choice, data_size_bytes: None }).await.unwrap();
        paths.create_all().unwrap();
        let slots = "31195-31196".parse().unwrap();
        let options = NetworkOptions { slots, pool: 0, name_servers: Vec::new() };
        let slots = SlotAllocator::start(options, &Default::default()).await.unwrap();
        let slot = slots.acquire().await.unwrap();
        let home = paths.capsule(&"jailed".parse().unwrap());
        home.create().unwrap();
        let file = |name: &str, bytes: u64| {
            let path = directory.path().join(name);
            fs::File::create(&path).unwrap().set_len(bytes).unwrap();
            path
        };
        let kernel = KernelImage {
            version: "none".to_owned(),
            vmlinux: file("vmlinux", 4096),
            initrd: file("initrd", 4096),
        };
        fs::rename(file("disk", 1 << 20), home.disk()).unwrap();
        let disk = store.attach(&DiskView { path: home.disk() }).await.unwrap();

        let config = MachineConfig { vcpus: 1, memory_mib: 128 };
        let mounts = Arc::new(EmptyNamespace::make().unwrap());
        let version = Version::of(&program).unwrap().to_string();
        let launcher = Launcher { program, mounts, cgroups: Cgroups::none() };
        let place = Place::new(config, &disk, &slot, &home).await.unwrap();
        place.prepare().unwrap();
        let output = Place::output().unwrap();
        let origin = Origin::Boot(kernel);
        let launched = place.start(&launcher, &origin, &output).unwrap();
        let process = launched.process().clone();
        let told = async {
            let api = connect(&home).await?;
            configure(&api, config).await?;
            api.mmds(&metadata("jailed", None)).await?;
            api.instance_info().await
        };
        let told =
            supervise(&process, &output.log, "being told", Duration::from_secs(60), told).await.unwrap();
        assert_eq!(told.vmm_version, version);
        let again = place.start(&launcher, &origin, &output);
        assert!(matches!(again, Err(DriverError::DiskInUse(_))), "the disk is this machine's");
        process.kill().await.unwrap();
        place.clear(&Cgroups::none()).unwrap();
        for path in home.of_machine() {
            assert!(!path.exists(), "{} is left", path.display());
        }
        slots.release(slot).await.unwrap();
        slots.shutdown().await.unwrap();
        fs::remove_dir_all(paths.run()).unwrap();
    }
}
