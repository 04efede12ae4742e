//! A private Postgres cluster: started once per run, a database per stack, gone with its directory.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown};
use tempfile::TempDir;

use crate::inventory::Scope;
use crate::{leftovers, wait};

/// Where Debian keeps the server's programs, one folder a version.
const INSTALLATIONS: &str = "/usr/lib/postgresql";

/// The cluster's owner inside the database.
const SUPERUSER: &str = "wrenn";

/// The numeric uid and gid of `nobody`, for machines without the package's own account.
const NOBODY: u32 = 65534;

/// The longest it may take to serve, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server on a socket in its directory. Dropping it stops it and removes its files.
pub struct Cluster {
    programs: PathBuf,
    server: Child,
    directory: TempDir,
    account: Account,
}

#[derive(Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Postgres refuses to run as root.
    fn unprivileged() -> Result<Self> {
        let user = User::from_name("postgres").context("looking up the user postgres")?;
        Ok(user.map_or(Self { uid: NOBODY, gid: NOBODY }, |user| Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }
}

impl Cluster {
    pub async fn start() -> Result<Self> {
        let programs = newest_installation()?;
        let account = Account::unprivileged()?;
        let directory = tempfile::Builder::new().prefix(leftovers::CLUSTER).tempdir()?;
        // Slots are numbered from 1: a cluster has none.
        let scope = Scope { directory: directory.path().to_owned(), runtime: Vec::new(), slots: 0..=0 };
        leftovers::sign(&scope)?;
        chown(directory.path(), Some(Uid::from_raw(account.uid)), Some(Gid::from_raw(account.gid)))?;
        let data = directory.path().join("data");

        let mut initdb = as_account(&programs.join("initdb"), account, directory.path());
        initdb.arg("-D").arg(&data).args([
            "-U",
            SUPERUSER,
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        let output = initdb.output().context("running initdb")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));

        let log = fs::File::create(directory.path().join("server.log"))?;
        let server = as_account(&programs.join("postgres"), account, directory.path())
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            // Durability is not what is tested; a killed api is, a killed Postgres is not.
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=32MB"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting postgres")?;
        let cluster = Self { programs, server, directory, account };
        wait::until_true("Postgres answering", PATIENCE, async || {
            Ok(cluster.client("pg_isready").arg("-q").status()?.success())
        })
        .await?;
        Ok(cluster)
    }

    /// Makes an empty database and answers with its URL.
    pub fn create_database(&self, name: &str) -> Result<String> {
        let output = self.client("createdb").arg(name).output().context("running createdb")?;
        ensure!(output.status.success(), "createdb: {}", String::from_utf8_lossy(&output.stderr));
        Ok(format!("postgres://{SUPERUSER}@localhost/{name}?host={}", self.directory.path().display()))
    }

    fn client(&self, program: &str) -> Command {
        let mut command = as_account(&self.programs.join(program), self.account, self.directory.path());
        command.arg("-h").arg(self.directory.path()).args(["-U", SUPERUSER]);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGINT is Postgres's fast shutdown: sessions are ended, files are left whole.
        let asked = kill(Pid::from_raw(self.server.id().cast_signed()), Signal::SIGINT);
        let deadline = Instant::now() + PATIENCE;
        while asked.is_ok() && matches!(self.server.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        if !matches!(self.server.try_wait(), Ok(Some(_))) {
            eprintln!("postgres {} could not be stopped", self.server.id());
            let _ = self.server.kill().and_then(|()| self.server.wait());
        }
    }
}

fn as_account(program: &Path, account: Account, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.uid(account.uid).gid(account.gid).current_dir(directory).stdin(Stdio::null());
    command
}

fn newest_installation() -> Result<PathBuf> {
    let missing = || format!("no Postgres under {INSTALLATIONS}: install the package `postgresql`");
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(INSTALLATIONS)
        .with_context(missing)?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs): &(u32, PathBuf)| programs.join("initdb").is_file())
        .collect();
    versions.sort();
    Ok(versions.pop().with_context(missing)?.1)
}
