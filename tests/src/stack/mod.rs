//! A whole installation of its own: directory, database, control plane, one host or several.

mod control;
mod host;
mod options;
mod ports;
mod record;
mod slots;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::{Value, json};

pub use control::ControlPlane;
pub use host::{Failpoint, Host};
pub use options::{Database, OnStop, StackOptions};
pub use record::CapsuleRecord;
pub(crate) use slots::block_number;

use crate::daemon::{DaemonSpec, tail};
use crate::graphql::{Client, DOMAIN};
use crate::inventory::{HostInventory, Kind, Scope};
use ports::Ports;

use crate::leftovers;
use crate::redis::RedisServer;
use crate::runner::panic_message;
use crate::{assets, binaries, procfs, wait};

/// The longest a process of the stack may take to serve, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest a test may take that is not made of many rounds.
pub const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Lines of each log shown when a test fails.
const TAIL_LINES: usize = 60;

/// Network slots of each agent.
const SLOTS_PER_HOST: u16 = 60;

/// Folder of the control plane within a stack's directory.
const CONTROL: &str = "control";

/// A running installation. End it with [`Stack::teardown`], which proves that nothing is left.
pub struct Stack {
    root: PathBuf,
    /// The first one is what hosts report to.
    apis: Vec<ControlPlane>,
    hosts: Vec<Host>,
    platform: Client,
    redis: Option<Arc<RedisServer>>,
    warm_pool: usize,
    before: HostInventory,
    scope: Scope,
}

/// The line `wrenn-api bootstrap` prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bootstrap {
    api_key: String,
    admin_key: String,
}

impl Stack {
    /// Starts everything and waits until a capsule could be created.
    pub async fn start(options: StackOptions<'_>) -> Result<Self> {
        // Before slots are taken: those of a run that was killed are free again, but not clean.
        leftovers::orphans()?;
        let root = tempfile::Builder::new().prefix(leftovers::STACK).tempdir()?.keep();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        let hosts = u16::try_from(options.hosts)?;
        let slots = slots::take(hosts * SLOTS_PER_HOST)?;
        let runtime = (0..options.hosts).map(|index| host::runtime_directory(&host_directory(&root, index)));
        let scope = Scope { directory: root.clone(), runtime: runtime.collect(), slots: slots.clone() };
        leftovers::sign(&scope)?;
        // The firewall's table may be left by whoever was here before; this stack's own agents end with it.
        let before = HostInventory::take(&scope)?.without(Kind::File).without(Kind::FirewallTable);

        let mut ports = Ports::of_slots(*slots.start());
        let base = format!("http://127.0.0.1:{}", ports.take()?);
        let settings = ApiSettings::new(&root, &options)?;
        let spec = settings.spec(&base, "api")?;
        let keys = bootstrap(&spec).await?;
        let client = Client::new(&base, Some(&keys.api_key))?;
        let platform = client.with_key(Some(&keys.admin_key));
        let mut apis = vec![ControlPlane::new(spec, client)];
        for number in 1..=options.replicas {
            let base = format!("http://127.0.0.1:{}", ports.take()?);
            let spec = settings.spec(&base, &format!("api-{number}"))?;
            apis.push(ControlPlane::new(spec, Client::new(&base, Some(&keys.api_key))?));
        }
        let redis = options.redis.clone();
        let warm_pool = options.setting("WRENN_WARM_POOL").map_or(Ok(0), str::parse)?;
        let mut stack = Self { root, apis, hosts: Vec::new(), platform, redis, warm_pool, before, scope };
        if let Err(error) = stack.complete(&options, *slots.start(), &mut ports, &base).await {
            let log = stack.log_tail();
            let swept = stack.teardown().await;
            return Err(error.context(format!("starting a stack (teardown: {swept:?})\n{log}")));
        }
        Ok(stack)
    }

    async fn complete(
        &mut self,
        options: &StackOptions<'_>,
        first_slot: u16,
        ports: &mut Ports,
        base: &str,
    ) -> Result<()> {
        for api in &self.apis {
            api.start().await?;
        }
        let assets = options.assets.clone().map_or_else(assets::directory, Ok)?;
        for index in 0..options.hosts {
            let first = first_slot + u16::try_from(index)? * SLOTS_PER_HOST;
            let slots = first..=first + SLOTS_PER_HOST - 1;
            let (id, token) = self.register_host(&format!("host-{index}")).await?;
            let dir = host_directory(&self.root, index);
            assets::link_into(&assets, &dir, &options.images)?;
            self.hosts.push(Host::new(id, dir, slots, ports, base, options)?);
            let host = self.hosts.last().context("just pushed")?;
            host.start(Some(&token)).await?;
            self.host_online(host.id()).await?;
        }
        Ok(())
    }

    /// The key of the team that the tests act for.
    pub fn client(&self) -> &Client {
        self.apis[0].client()
    }

    /// The control planes: the first one, which [`Self::client`] talks to, then the further ones.
    pub fn apis(&self) -> &[ControlPlane] {
        &self.apis
    }

    /// The key of the platform's team: another team than the client's, and the hosts' administrator.
    pub fn platform(&self) -> &Client {
        &self.platform
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of a stack that has one.
    pub fn host(&self) -> &Host {
        &self.hosts[0]
    }

    /// What the first host runs capsules with, as it says it: `qemu…` or `firecracker…`, with more behind.
    pub async fn vmm(&self) -> Result<String> {
        const HOST: &str = "query($id: ID!) { node(id: $id) { ... on Host { vmm } } }";
        let host: Value = self.platform().get("node", HOST, json!({ "id": self.host().id() })).await?;
        Ok(host["vmm"].as_str().context("`vmm` of a host")?.to_owned())
    }

    /// How many machines each agent makes ahead of every template.
    pub fn warm_pool(&self) -> usize {
        self.warm_pool
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub fn api_pid(&self) -> Result<u32> {
        self.apis[0].pid()
    }

    pub async fn kill9_api(&self) -> Result<()> {
        self.apis[0].kill9().await
    }

    /// Starts the api that was killed again: same port, same database.
    pub async fn start_api(&self) -> Result<()> {
        self.apis[0].start().await
    }

    /// Where the control planes hear of each other's changes.
    pub fn redis(&self) -> Result<&RedisServer> {
        self.redis.as_deref().context("this stack has no Redis")
    }

    async fn register_host(&self, name: &str) -> Result<(String, String)> {
        let query = "mutation($input: CreateHostInput!) { createHost(input: $input) { host { id } token expiresAt } }";
        let made: Value =
            self.platform.get("createHost", query, json!({ "input": { "name": name } })).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("createHost's answer");
        Ok((text(&made["host"]["id"])?, text(&made["token"])?))
    }

    /// Waits until the control plane counts on the host.
    pub async fn host_online(&self, id: &str) -> Result<()> {
        let query = "query($id: ID!) { node(id: $id) { ... on Host { status } } }";
        wait::until_true(format!("{id} online"), PATIENCE, async || {
            let host: Value = self.platform.get("node", query, json!({ "id": id })).await?;
            Ok(host["status"] == "ONLINE")
        })
        .await
    }

    /// Where the control plane keeps its certificate authority.
    pub fn authority(&self) -> PathBuf {
        self.root.join(CONTROL).join("ca")
    }

    /// The host that holds a capsule's files.
    pub fn host_of(&self, capsule: &str) -> Result<&Host> {
        self.hosts
            .iter()
            .find(|host| host.record_path(capsule).exists())
            .with_context(|| format!("no host has a record of {capsule}"))
    }

    /// The VMM process that runs a capsule, nothing if none does.
    pub fn vmm_of(&self, capsule: &str) -> Option<u32> {
        // What a jailed one has open is named as it is called in its jail.
        self.vmms().find(|pid| procfs::mentions(*pid, capsule) || procfs::mounts(*pid, capsule))
    }

    /// How many VMM processes the stack has.
    pub fn vmm_count(&self) -> usize {
        self.vmms().count()
    }

    fn vmms(&self) -> impl Iterator<Item = u32> {
        let root = self.root.to_string_lossy().into_owned();
        // Firecracker is called by the network slot of its machine.
        let of_a_slot = |pid: u32| {
            let line = procfs::command_line(pid);
            let slot =
                line.split_once("slot-").map(|(_, rest)| rest.split(' ').next().unwrap_or(rest).parse());
            slot.is_some_and(|slot| slot.is_ok_and(|slot| self.scope.slots.contains(&slot)))
        };
        let living = procfs::pids().into_iter().filter(|pid| !procfs::is_zombie(*pid));
        living.filter(move |pid| match procfs::name(*pid) {
            Some(name) if name.starts_with("qemu") => procfs::mentions(*pid, &root),
            Some(name) if name == "firecracker" => of_a_slot(*pid),
            _ => false,
        })
    }

    /// The last lines of every log, for the message of a failed test.
    pub fn log_tail(&self) -> String {
        let hosts = self.hosts.iter().map(|host| tail(host.log(), TAIL_LINES));
        self.apis.iter().map(|api| tail(api.log(), TAIL_LINES)).chain(hosts).collect()
    }

    /// The outcome of a test, with the last lines of the logs where it failed. One that has not ended within `limit` has.
    pub async fn explain(&self, limit: Duration, test: impl Future<Output = Result<()>>) -> Result<()> {
        match tokio::time::timeout(limit, AssertUnwindSafe(test).catch_unwind()).await {
            Ok(Ok(outcome)) => outcome.map_err(|error| anyhow!("{error:#}\n{}", self.log_tail())),
            Ok(Err(panic)) => bail!("{}\n{}", panic_message(panic.as_ref()), self.log_tail()),
            Err(_) => bail!("no end within {limit:?}\n{}", self.log_tail()),
        }
    }

    /// Destroys every capsule through the front door, ends the processes, and insists that the host is as it
    /// was before. What is left all the same is removed, so that one failure does not become ten.
    pub async fn teardown(&self) -> Result<()> {
        let outcome = self.teardown_in_order().await;
        let swept = leftovers::sweep(&self.scope);
        outcome.and(swept)
    }

    async fn teardown_in_order(&self) -> Result<()> {
        for client in [self.client(), &self.platform] {
            for capsule in client.capsules(json!({})).await.context("listing what is to be destroyed")? {
                if capsule.state != "STOPPED" {
                    client.destroy(&capsule.id).await?;
                }
            }
        }
        for host in &self.hosts {
            if host.is_started() {
                host.terminate(PATIENCE).await?;
            }
        }
        for api in self.apis.iter().rev().filter(|api| api.is_started()) {
            api.terminate(PATIENCE).await?;
        }
        for host in &self.hosts {
            host.unmount()?;
        }
        let left = HostInventory::take(&self.scope)?.without(Kind::File);
        self.before.difference(&left).into_result("left on the host after everything had ended")
    }
}

fn host_directory(root: &Path, index: usize) -> PathBuf {
    root.join(format!("host-{index}"))
}

/// What the control planes of a stack have in common.
struct ApiSettings {
    root: PathBuf,
    environment: Vec<(String, OsString)>,
}

impl ApiSettings {
    fn new(root: &Path, options: &StackOptions<'_>) -> Result<Self> {
        let dir = root.join(CONTROL);
        fs::create_dir_all(&dir)?;
        let url = match options.database {
            Database::Sqlite => format!("sqlite://{}", dir.join("wrenn.db").display()),
            Database::Postgres(cluster) => {
                let name = root.file_name().context("a directory has a name")?.to_string_lossy();
                cluster.create_database(&name)?
            }
        };
        let mut environment: Vec<(&str, OsString)> =
            vec![("WRENN_DIR", dir.into()), ("WRENN_DATABASE_URL", url.into()), ("WRENN_LOG", log_level())];
        environment.push(("WRENN_PROXY_DOMAIN", DOMAIN.into()));
        environment.extend(options.redis.as_ref().map(|redis| ("WRENN_REDIS_URL", redis.url().into())));
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Self { root: root.to_owned(), environment })
    }

    fn spec(&self, base: &str, name: &str) -> Result<DaemonSpec> {
        let listen = base.trim_start_matches("http://");
        let mut environment = self.environment.clone();
        environment.push(("WRENN_API_LISTEN".to_owned(), listen.into()));
        Ok(DaemonSpec {
            name: "wrenn-api".into(),
            program: binaries::find("wrenn-api")?,
            arguments: vec!["serve".into()],
            environment,
            log: self.root.join(format!("{name}.log")),
        })
    }
}

/// What the daemons log; `WRENN_TEST_LOG` makes them say more.
fn log_level() -> OsString {
    std::env::var_os("WRENN_TEST_LOG").unwrap_or_else(|| "info".into())
}

async fn bootstrap(api: &DaemonSpec) -> Result<Bootstrap> {
    let output = tokio::process::Command::new(&api.program)
        .arg("bootstrap")
        .envs(api.environment.iter().map(|(name, value)| (name, value)))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(2 * PATIENCE, output)
        .await
        .context("wrenn-api bootstrap does not end")?
        .context("running wrenn-api bootstrap")?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "wrenn-api bootstrap: {}\n{stderr}", output.status);
    let line = stdout.lines().last().context("wrenn-api bootstrap printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("the line of wrenn-api bootstrap: {line}"))
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
