//! One host of a stack: a `wrenn-agent` with a directory, ports and network slots of its own.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::ports::Ports;
use super::{OnStop, PATIENCE, log_level, run};
use crate::daemon::{Daemon, DaemonSpec};
use crate::inventory::mount_points;
use crate::{binaries, wait};

/// Where the agent of a directory keeps its sockets: their paths must be short, so it is elsewhere, under the first
/// six bytes of the SHA-256 of the directory's path.
pub(super) fn runtime_directory(dir: &Path) -> PathBuf {
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Path::new("/run/wrenn").join(name)
}

pub struct Host {
    id: String,
    dir: PathBuf,
    spec: DaemonSpec,
    /// gRPC of the agent, `host:port`.
    address: String,
    /// Plain HTTP of the agent: `/health`.
    health: String,
    agent: Mutex<Option<Daemon>>,
}

impl Host {
    pub(super) fn new(
        id: String,
        dir: PathBuf,
        slots: RangeInclusive<u16>,
        ports: &mut Ports,
        api: &str,
        on_stop: OnStop,
    ) -> Result<Self> {
        let (listen, http) = (format!("127.0.0.1:{}", ports.take()?), format!("127.0.0.1:{}", ports.take()?));
        let environment: [(&str, OsString); 9] = [
            ("WRENN_DIR", dir.clone().into()),
            ("WRENN_API_URL", api.into()),
            ("WRENN_AGENT_LISTEN", listen.clone().into()),
            ("WRENN_AGENT_ADVERTISE", listen.clone().into()),
            ("WRENN_AGENT_HTTP_LISTEN", http.clone().into()),
            ("WRENN_SLOTS", format!("{}-{}", slots.start(), slots.end()).into()),
            ("WRENN_ON_STOP", on_stop.as_setting().into()),
            ("WRENN_STORE_SIZE", "16Gi".into()),
            ("WRENN_LOG", log_level()),
        ];
        let spec = DaemonSpec {
            name: "wrenn-agent".into(),
            program: binaries::find("wrenn-agent")?,
            arguments: vec!["serve".into()],
            environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            log: dir.with_extension("log"),
        };
        Ok(Self {
            id,
            dir,
            spec,
            address: listen,
            health: format!("http://{http}/health"),
            agent: Mutex::new(None),
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn log(&self) -> &Path {
        &self.spec.log
    }

    /// What the agent wrote about a capsule, so that its next life finds it.
    pub fn record_path(&self, capsule: &str) -> PathBuf {
        self.dir.join("data/capsules").join(capsule).join("capsule.json")
    }

    pub fn is_started(&self) -> bool {
        self.agent().is_some()
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.agent().as_ref().context("the agent is not running")?.pid())
    }

    /// Starts the agent and waits until it serves; `token` registers it, once.
    pub async fn start(&self, token: Option<&str>) -> Result<()> {
        let mut spec = self.spec.clone();
        if let Some(token) = token {
            spec.arguments.extend(["--register".into(), token.into()]);
        }
        *self.agent() = Some(Daemon::start(spec)?);
        let http = reqwest::Client::builder().no_proxy().build()?;
        wait::until_true(format!("{} serving", self.id), PATIENCE, async || {
            if let Some(agent) = self.agent().as_mut()
                && let Some(status) = agent.ended()?
            {
                anyhow::bail!("the agent ended with {status}");
            }
            Ok(http.get(&self.health).send().await?.status().is_success())
        })
        .await
    }

    pub async fn kill9(&self) -> Result<()> {
        let agent = self.agent().take().context("the agent is not running")?;
        agent.kill9().await
    }

    pub async fn terminate(&self, patience: Duration) -> Result<()> {
        let agent = self.agent().take().context("the agent is not running")?;
        agent.terminate(patience).await
    }

    /// What `wrenn-agent doctor` prints with this host's settings; it must find the host fit.
    pub async fn doctor(&self) -> Result<String> {
        let output = tokio::process::Command::new(&self.spec.program)
            .arg("doctor")
            .envs(self.spec.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .await
            .context("running wrenn-agent doctor")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "wrenn-agent doctor: {}\n{said}", output.status);
        Ok(said)
    }

    /// Unmounts the data file system, which an agent leaves mounted for the capsules it leaves running.
    pub(super) fn unmount(&self) -> Result<()> {
        let data = self.dir.join("data");
        if mount_points()?.iter().any(|point| Path::new(point) == data) {
            run("umount", &[&data.to_string_lossy()])?;
        }
        let still = mount_points()?.iter().any(|point| Path::new(point).starts_with(&self.dir));
        ensure!(!still, "something is still mounted under {}", self.dir.display());
        Ok(())
    }

    fn agent(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
