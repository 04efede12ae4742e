//! One host of a stack: a `wrenn-agent` with a directory, ports and network slots of its own.

use std::ffi::OsString;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::ports::Ports;
use super::{PATIENCE, StackOptions, log_level, run};
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

/// What an agent is told of how long guests may be silent, in seconds: four of them are restored at once on two cores,
/// and a test may run beside.
const RECONNECT_GRACE: &str = "30";

pub struct Host {
    id: String,
    dir: PathBuf,
    spec: DaemonSpec,
    /// gRPC of the agent, `host:port`.
    address: String,
    /// Plain HTTP of the agent: `/health` and `/metrics`.
    http: String,
    /// Where the agent looks for orders at its failpoints, if it was started so.
    failpoints: PathBuf,
    agent: Mutex<Option<Daemon>>,
}

/// A place where the agent can be made to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failpoint {
    pub name: String,
    /// Of `error` and `kill`, what can happen there.
    pub actions: Vec<String>,
    /// Those that pass it.
    pub operations: Vec<String>,
}

impl Failpoint {
    /// From a line as `pause.saved error,kill pause`.
    fn parse(line: &str) -> Result<Self> {
        let [name, actions, operations] = line.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("a failpoint that cannot be read: {line}");
        };
        let list = |text: &str| text.split(',').map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), actions: list(actions), operations: list(operations) })
    }
}

impl Host {
    pub(super) fn new(
        id: String,
        dir: PathBuf,
        slots: RangeInclusive<u16>,
        ports: &mut Ports,
        api: &str,
        options: &StackOptions<'_>,
    ) -> Result<Self> {
        let (listen, http) = (format!("127.0.0.1:{}", ports.take()?), format!("127.0.0.1:{}", ports.take()?));
        let mut environment: Vec<(&str, OsString)> = vec![
            ("WRENN_DIR", dir.clone().into()),
            ("WRENN_API_URL", api.into()),
            ("WRENN_AGENT_LISTEN", listen.clone().into()),
            ("WRENN_AGENT_ADVERTISE", listen.clone().into()),
            ("WRENN_AGENT_HTTP_LISTEN", http.clone().into()),
            ("WRENN_SLOTS", format!("{}-{}", slots.start(), slots.end()).into()),
            ("WRENN_ON_STOP", options.on_stop.as_setting().into()),
            ("WRENN_STORE_SIZE", "16Gi".into()),
            ("WRENN_RECONNECT_GRACE", RECONNECT_GRACE.into()),
            ("WRENN_LOG", log_level()),
        ];
        // So that everything can be tested with any of them.
        const CHOSEN: [&str; 5] =
            ["WRENN_VMM", "WRENN_KVM", "WRENN_FIRECRACKER_BIN", "WRENN_RESTORE", "WRENN_DISK_STORE"];
        environment.extend(CHOSEN.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        environment.extend(options.settings.iter().map(|(name, value)| (*name, value.into())));
        let failpoints = dir.with_extension("failpoints");
        if options.failpoints {
            environment.push(("WRENN_FAILPOINTS_FILE", failpoints.clone().into()));
        }
        let spec = DaemonSpec {
            name: "wrenn-agent".into(),
            program: binaries::find("wrenn-agent")?,
            arguments: vec!["serve".into()],
            environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            log: dir.with_extension("log"),
        };
        Ok(Self {
            id,
            dir,
            spec,
            address: listen,
            http: format!("http://{http}"),
            failpoints,
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

    /// Where the VMM of a capsule listens.
    pub fn qmp_socket(&self, capsule: &str) -> PathBuf {
        runtime_directory(&self.dir).join(capsule).join("qmp.sock")
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
        self.start_as(spec).await
    }

    /// The same of a registered one, which has this setting until it is started again.
    pub async fn start_with(&self, name: &str, value: &str) -> Result<()> {
        let mut spec = self.spec.clone();
        spec.environment.push((name.to_owned(), value.into()));
        self.start_as(spec).await
    }

    async fn start_as(&self, spec: DaemonSpec) -> Result<()> {
        *self.agent() = Some(Daemon::start(spec)?);
        let http = reqwest::Client::builder().no_proxy().build()?;
        wait::until_true(format!("{} serving", self.id), PATIENCE, async || {
            if let Some(agent) = self.agent().as_mut()
                && let Some(status) = agent.ended()?
            {
                anyhow::bail!("the agent ended with {status}");
            }
            Ok(http.get(format!("{}/health", self.http)).send().await?.status().is_success())
        })
        .await
    }

    /// How many machines the agent has made ahead.
    pub async fn warm_members(&self) -> Result<usize> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let metrics = http.get(format!("{}/metrics", self.http)).send().await?.text().await?;
        let members = metrics.lines().find_map(|line| line.strip_prefix("wrenn_warm_pool_members "));
        Ok(members.map_or(Ok(0), str::parse)?)
    }

    pub async fn kill9(&self) -> Result<()> {
        let agent = self.agent().take().context("the agent is not running")?;
        agent.kill9().await
    }

    pub async fn terminate(&self, patience: Duration) -> Result<()> {
        let agent = self.agent().take().context("the agent is not running")?;
        agent.terminate(patience).await
    }

    /// Waits until the agent has ended by itself; it may be started again then.
    pub async fn died(&self, patience: Duration) -> Result<()> {
        wait::until_true("the agent's end", patience, async || {
            let mut agent = self.agent();
            Ok(agent.as_mut().context("the agent is not running")?.ended()?.is_some())
        })
        .await?;
        *self.agent() = None;
        Ok(())
    }

    /// Every failpoint that the agent's binary has.
    pub async fn failpoints(&self) -> Result<Vec<Failpoint>> {
        self.tell("failpoints").await?.lines().map(Failpoint::parse).collect()
    }

    /// What happens at the agent's failpoints from now on, as `pause.saved=error*1`; nothing if empty.
    pub fn order(&self, orders: &str) -> Result<()> {
        // Never seen half written.
        let new = self.failpoints.with_extension("failpoints.new");
        fs::write(&new, orders).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &self.failpoints).with_context(|| format!("writing {}", self.failpoints.display()))
    }

    /// How often the agent has said that something happened at a failpoint.
    pub fn passed(&self, failpoint: &str) -> Result<usize> {
        let log = fs::read_to_string(&self.spec.log).context("reading the agent's log")?;
        let said = format!("failpoint=\"{failpoint}\"");
        Ok(log.lines().filter(|line| line.contains(&said)).count())
    }

    /// What `wrenn-agent doctor` prints with this host's settings; it must find the host fit.
    pub async fn doctor(&self) -> Result<String> {
        self.tell("doctor").await
    }

    /// What the agent's program prints for a subcommand that ends well.
    async fn tell(&self, subcommand: &str) -> Result<String> {
        let output = tokio::process::Command::new(&self.spec.program)
            .arg(subcommand)
            .envs(self.spec.environment.iter().map(|(name, value)| (name, value)))
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(2 * PATIENCE, output)
            .await
            .with_context(|| format!("wrenn-agent {subcommand} does not end"))?
            .with_context(|| format!("running wrenn-agent {subcommand}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "wrenn-agent {subcommand}: {}\n{said}", output.status);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_is_read_from_its_line() {
        let point = Failpoint::parse("launch.parts error,kill create,resume").expect("a failpoint");
        assert_eq!(point.name, "launch.parts");
        assert_eq!(point.actions, ["error", "kill"]);
        assert_eq!(point.operations, ["create", "resume"]);
        assert!(Failpoint::parse("launch.parts kill").is_err());
    }
}
