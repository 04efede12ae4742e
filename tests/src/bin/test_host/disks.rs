//! The test host's disks: the system, what is to be done, and what outlives a power failure.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use wrenn_tests::assets;

use crate::HostArguments;
use crate::job::{Job, quoted};

/// Held by the one test host that runs: two would take more than a machine of two cores has, and be killed by deadlines.
const LOCK: &str = "/run/lock/wrenn-test-host";
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// On a disk: what is made here is larger than memory should be.
const ROOM: &str = "/var/tmp";
const PREFIX: &str = "wrenn-test-host-";
/// Where the work disk is in the test host.
const WORK: &str = "/run/work";
pub const INIT: &str = include_str!("init");
/// Size of the system's disk. It takes what is written.
const SYSTEM_BYTES: u64 = 24 << 30;
const DATA_BYTES: u64 = 2 << 30;

/// Where test hosts are made, by one process at a time. Dropping it removes all of it.
pub struct Workshop {
    /// As `wrenn-rootfs` made it.
    system: PathBuf,
    assets: PathBuf,
    /// Name in the test host, and file.
    programs: Vec<(String, PathBuf)>,
    /// Of every job.
    environment: Vec<(String, String)>,
    directory: TempDir,
    _lock: File,
}

impl Workshop {
    /// Waits for whoever runs a test host on this machine.
    pub async fn open(arguments: &HostArguments) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "images keep owners, and disks are made as root: be root");
        let system = arguments.dir.join("test-host");
        ensure!(
            system.join("test-host.json").is_file(),
            "{} is not a test host: make it with `wrenn-rootfs test-host`",
            system.display()
        );
        let assets = arguments.assets.as_ref().unwrap_or(&arguments.dir).clone();
        for folder in ["kernels", "images"] {
            ensure!(assets.join(folder).is_dir(), "{} has no {folder}/", assets.display());
        }
        let mut environment = Vec::new();
        for (name, value) in
            [("WRENN_DIR", "assets"), ("WRENN_TEST_ASSETS", "assets"), ("WRENN_BIN_DIR", "bin")]
        {
            environment.push((name.to_owned(), format!("{WORK}/{value}")));
        }
        environment.push(("PATH".to_owned(), format!("{WORK}/bin:/usr/sbin:/usr/bin:/sbin:/bin")));
        // That there is an emulated processor with virtualisation is the point of the test host. Tests that cannot run
        // everywhere must run in it.
        for (name, value) in [("WRENN_KVM", "force"), ("WRENN_TEST_HOST", "1")] {
            environment.push((name.to_owned(), value.to_owned()));
        }
        let mut programs = Vec::new();
        for path in &arguments.programs {
            let name = path.file_name().context("a program has a file name")?;
            programs.push((name.to_string_lossy().into_owned(), path.clone()));
        }
        if let Some(path) = &arguments.firecracker {
            programs.push(("firecracker".to_owned(), path.clone()));
            environment.push(("WRENN_FIRECRACKER_BIN".to_owned(), format!("{WORK}/bin/firecracker")));
        }
        for (_, path) in &programs {
            ensure!(path.is_file(), "{} is not a file", path.display());
        }
        let lock = lock().await?;
        remove_strays()?;
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(ROOM)?;
        Ok(Self { system, assets, programs, environment, directory, _lock: lock })
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn kernel(&self) -> PathBuf {
        self.system.join("vmlinux")
    }

    pub fn initrd(&self) -> PathBuf {
        self.system.join("initrd.cpio")
    }

    /// A system disk that nothing was written to, in place of the one there was.
    pub fn system_disk(&self) -> Result<PathBuf> {
        let disk = self.directory().join("system");
        let from = self.system.join("rootfs.ext4");
        run(Command::new("cp").args(["--reflink=auto", "--sparse=always"]).arg(from).arg(&disk))?;
        File::options().write(true).open(&disk)?.set_len(SYSTEM_BYTES)?;
        Ok(disk)
    }

    /// A disk with everything that these jobs need.
    pub fn work_disk(&self, jobs: &[Job]) -> Result<PathBuf> {
        let tree = self.directory().join("tree");
        for folder in ["jobs", "tests", "bin", "assets"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        write_program(&tree.join("init"), INIT.as_bytes())?;
        for (name, path) in &self.programs {
            copy_program(path, &tree.join("bin").join(name))?;
        }
        let environment: String = self
            .environment
            .iter()
            .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
            .collect();
        for (number, job) in jobs.iter().enumerate() {
            let binary = job.binary.file_name().context("a binary has a file name")?.to_string_lossy();
            copy_program(&job.binary, &tree.join("tests").join(&*binary))?;
            let script = job.script(&format!("{WORK}/tests/{binary}"));
            fs::write(tree.join("jobs").join(job_file(number)), format!("{environment}{script}"))?;
        }
        // With their times: the kernel made last is the one that is used.
        for path in [PathBuf::from("kernels"), assets::image(&self.assets, assets::MINIMAL)?.directory] {
            let to = tree.join("assets").join(&path);
            fs::create_dir_all(to.parent().context("is below the assets")?)?;
            run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(self.assets.join(&path)).arg(to))?;
        }
        let disk = self.directory().join("work");
        make_ext4(&tree, &disk)?;
        fs::remove_dir_all(tree)?;
        Ok(disk)
    }
}

/// The shell's order of names is that of the jobs.
pub fn job_file(number: usize) -> String {
    format!("{number:03}")
}

/// Looks again and again, so that whoever waits can be told to end.
async fn lock() -> Result<File> {
    let lock = File::create(LOCK).with_context(|| format!("opening {LOCK}"))?;
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).context(format!("locking {LOCK}")),
        }
        if !told {
            eprintln!("another test host is running on this machine: waiting for its end");
            told = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Of processes that were killed. Only the holder of the lock may.
fn remove_strays() -> Result<()> {
    for entry in fs::read_dir(ROOM).with_context(|| format!("listing {ROOM}"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn write_program(to: &Path, content: &[u8]) -> Result<()> {
    fs::write(to, content).with_context(|| format!("writing {}", to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

fn copy_program(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

/// Read-only later, so there is no room in it and no journal.
fn make_ext4(tree: &Path, disk: &Path) -> Result<()> {
    let used = Command::new("du").args(["-s", "--block-size=1M"]).arg(tree).output().context("running du")?;
    let used = String::from_utf8_lossy(&used.stdout);
    let mib: u64 = used.split_whitespace().next().and_then(|n| n.parse().ok()).context("du gave no size")?;
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d"])
        .arg(tree)
        .arg(disk)
        .arg(format!("{}M", mib * 11 / 10 + 64)))
}

#[derive(Clone, Copy, Debug)]
pub enum FileSystem {
    Xfs,
    Ext4,
}

impl FileSystem {
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }
}

/// A disk that several test hosts have one after another.
pub struct DataDisk {
    pub path: PathBuf,
    pub file_system: FileSystem,
}

impl DataDisk {
    /// An empty one, in place of the one there was.
    pub fn make(workshop: &Workshop, file_system: FileSystem) -> Result<Self> {
        let path = workshop.directory().join("data");
        File::create(&path)?.set_len(DATA_BYTES)?;
        run(Command::new(format!("mkfs.{}", file_system.name())).arg("-q").arg(&path))?;
        Ok(Self { path, file_system })
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
