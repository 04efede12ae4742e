//! A real agent in this process, with a CA of its own, and a client that is its control plane.
//!
//! Tests of one binary share a directory and take turns. One that fails takes its VMMs with it, and the next one clears the
//! rest away: one failure is one failure.

pub mod calls;
mod limit;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use wrenn_agent::ids::TeamId;
use wrenn_agent::{Agent, AgentError, Config};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::agent_client::AgentClient;
use wrenn_vmm::network::{SlotNumber, SlotRange};

/// Names a directory with `kernels/` and `images/`, as `wrenn-rootfs` makes them.
const ASSETS: &str = "WRENN_TEST_ASSETS";

/// The name the agent refuses everybody else for.
pub const CONTROL_PLANE: &str = "control-plane.wrenn.internal";

/// A certificate authority for one test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

pub struct Identity {
    pub key_pem: String,
    pub certificate_pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { key_pem: key.serialize_pem(), certificate_pem: certificate.pem() }
    }

    /// What registration would have left in the agent's directory.
    pub fn enrol(&self, agent_directory: &Path) {
        let host = self.issue("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
        let now = chrono::Utc::now();
        let credentials = serde_json::json!({
            "host_id": "host-0000000000000000000000001",
            "key_pem": host.key_pem,
            "certificate_pem": host.certificate_pem,
            "ca_pem": self.pem,
            "token": "token",
            "issued_at": now,
            "token_expires_at": now + chrono::TimeDelta::days(7),
            "refresh_token": "refresh",
        });
        std::fs::create_dir_all(agent_directory).unwrap();
        std::fs::write(agent_directory.join("credentials.json"), credentials.to_string()).unwrap();
    }

    /// Connects as `identity`.
    pub async fn connect(
        &self,
        address: SocketAddr,
        identity: &Identity,
    ) -> Result<Channel, tonic::transport::Error> {
        let connector = self.tls(identity, b"h2");
        let connect = service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                let name = ServerName::IpAddress(address.ip().into());
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, socket).await?))
            }
        });
        Endpoint::from_static("http://agent").connect_with_connector(connect).await
    }

    /// What speaks `protocol` as `identity`.
    pub fn tls(&self, identity: &Identity, protocol: &[u8]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

/// Whoever has it is alone with the site, for a while.
pub struct Turn {
    _turn: MutexGuard<'static, ()>,
    _limit: limit::Limit,
}

/// The site of this name, clear of what a failed test left there, once it is this test's turn.
pub async fn site(name: &str, slots: &'static str) -> (Turn, Site) {
    static ONE_AT_A_TIME: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);
    let turn = ONE_AT_A_TIME.lock().await;
    let site = Site::prepare(name, slots);
    let turn = Turn { _turn: turn, _limit: limit::Limit::begin(site.slots()) };
    if !site.leftovers().is_empty() {
        site.clear().await;
    }
    (turn, site)
}

/// A directory for an agent, with kernel and image, and the slots it may use.
pub struct Site {
    pub directory: PathBuf,
    pub authority: Authority,
    slots: &'static str,
}

/// With the assets, unless these are only lent.
fn directory(assets: &Path, name: &str) -> PathBuf {
    let name = format!("tests/agent-{name}");
    let directory = assets.join(&name);
    match std::fs::create_dir_all(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            let elsewhere = std::env::temp_dir().join("wrenn").join(name);
            std::fs::create_dir_all(&elsewhere).unwrap();
            elsewhere
        }
        made => {
            made.unwrap();
            directory
        }
    }
}

fn link(to: &Path, at: &Path) {
    if !at.exists() {
        std::os::unix::fs::symlink(to, at).unwrap();
    }
}

impl Site {
    /// The directory stays between runs of the tests: its golden snapshot is what makes them quick.
    fn prepare(name: &str, slots: &'static str) -> Self {
        // Shown where a test fails, or with `--nocapture`; RUST_LOG chooses what.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _set_before = tracing_subscriber::fmt().with_test_writer().with_env_filter(filter).try_init();
        let Some(assets) = std::env::var_os(ASSETS).map(PathBuf::from) else {
            panic!(
                "{ASSETS} is not set: it must name a directory with kernels/ and images/ (see agent/README.md)"
            );
        };
        assert!(nix::unistd::geteuid().is_root(), "these tests start microVMs: they must run as root");
        let directory = directory(&assets, name);
        link(&assets.join("kernels"), &directory.join("kernels"));
        // Images of its own lie beside those that it is lent.
        let teams = directory.join("images/teams");
        std::fs::create_dir_all(&teams).unwrap();
        for team in names(&assets.join("images/teams")) {
            link(&team, &teams.join(team.file_name().unwrap()));
        }
        let authority = Authority::new();
        authority.enrol(&directory.join("agent"));
        Self { directory, authority, slots }
    }

    /// The environment of an agent in this directory.
    pub fn environment(&self, settings: &[(&str, &str)]) -> BTreeMap<String, String> {
        let dir = self.directory.to_str().unwrap();
        // So that these tests can be run on any store.
        let store = std::env::var("WRENN_DISK_STORE").unwrap_or_default();
        let mut all = BTreeMap::from([
            ("WRENN_DIR", dir),
            ("WRENN_AGENT_LISTEN", "127.0.0.1:0"),
            ("WRENN_AGENT_HTTP_LISTEN", "127.0.0.1:0"),
            // Nobody is there: a control plane that is away changes nothing.
            ("WRENN_API_URL", "http://127.0.0.1:9"),
            ("WRENN_SLOTS", self.slots),
            // The page server is the agent's own program, which this one is not.
            ("WRENN_RESTORE", "file"),
            // Of ten guests that start at once on two emulated cores the last one is slow.
            ("WRENN_RECONNECT_GRACE", "60"),
        ]);
        if !store.is_empty() {
            all.insert("WRENN_DISK_STORE", &store);
        }
        // So that these tests can be run by any VMM.
        let chosen = ["WRENN_VMM", "WRENN_KVM", "WRENN_FIRECRACKER_BIN"];
        let chosen: Vec<_> =
            chosen.into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?))).collect();
        all.extend(chosen.iter().map(|(name, value)| (*name, value.as_str())));
        all.extend(settings.iter().copied());
        all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Removes what a failed test left.
    async fn clear(&self) {
        end_processes(&self.slots());
        let (agent, mut client) = self.start_after_another().await;
        for capsule in
            client.list_capsules(agent::ListCapsulesRequest {}).await.unwrap().into_inner().capsules
        {
            client.destroy_capsule(calls::capsule(&capsule.id)).await.unwrap();
        }
        let images = self.directory.join("images/teams").join(TeamId::from_u128(7).to_string());
        let templates = names(&self.directory.join("data/templates")).into_iter().chain(names(&images));
        for template in templates {
            let template_id = template.file_name().unwrap().to_str().unwrap().to_owned();
            client.delete_template(agent::DeleteTemplateRequest { template_id }).await.unwrap();
        }
        agent.stop().await;
    }

    /// The agent of a test that failed ends with that test's runtime, which may take a moment longer than the test.
    async fn start_after_another(&self) -> (Agent, AgentClient<Channel>) {
        let mut agent = None;
        calls::until("no other agent has the directory", async || {
            let config = Config::from_environment(self.environment(&[])).unwrap();
            match Agent::start(config, None).await {
                Ok(started) => agent = Some(started),
                Err(AgentError::Lock(_)) => {}
                Err(error) => panic!("{}", wrenn_agent::report(&error)),
            }
            agent.is_some()
        })
        .await;
        let agent = agent.unwrap();
        let client = self.connect(agent.address()).await.unwrap();
        (agent, client)
    }

    /// Leaves no mount behind; what was mounted is kept in its file.
    pub async fn close(self) {
        let paths = wrenn_vmm::paths::HostPaths::new(&self.directory).unwrap();
        wrenn_vmm::disk::unmount(&paths).await.unwrap();
    }

    pub async fn start(&self, settings: &[(&str, &str)]) -> (Agent, AgentClient<Channel>) {
        let config = Config::from_environment(self.environment(settings)).unwrap();
        let agent = Agent::start(config, None).await.unwrap();
        let client = self.connect(agent.address()).await.unwrap();
        (agent, client)
    }

    /// As the control plane.
    pub async fn connect(
        &self,
        address: SocketAddr,
    ) -> Result<AgentClient<Channel>, tonic::transport::Error> {
        let identity = self.authority.issue(CONTROL_PLANE, ExtendedKeyUsagePurpose::ClientAuth);
        Ok(AgentClient::new(self.authority.connect(address, &identity).await?))
    }

    pub fn slots(&self) -> SlotRange {
        self.slots.parse().unwrap()
    }

    /// The VMMs of all capsules that have a record.
    pub fn vmms(&self) -> Vec<i32> {
        let records = self.records();
        let pids = records.iter().filter_map(|record| record["machine"]["process"]["pid"].as_i64());
        let mut pids: Vec<i32> = pids.map(|pid| i32::try_from(pid).unwrap()).collect();
        pids.sort_unstable();
        pids
    }

    /// The only VMM there is.
    pub fn vmm(&self) -> i32 {
        let [vmm] = self.vmms()[..] else { panic!("there is more than one, or none: {:?}", self.vmms()) };
        vmm
    }

    /// All processes of the users of this agent's slots that have not ended.
    pub fn processes(&self) -> Vec<i32> {
        processes(&self.slots())
    }

    pub fn records(&self) -> Vec<serde_json::Value> {
        let entries = names(&self.directory.join("data/capsules")).into_iter();
        let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.join("capsule.json")).ok());
        texts.map(|text| serde_json::from_str(&text).unwrap()).collect()
    }

    /// What must be empty when no capsule is left and the agent has stopped.
    pub fn leftovers(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for slot in self.slots().iter() {
            let places =
                [format!("/run/netns/{}", slot.namespace()), format!("/sys/class/net/{}", slot.host_veth())];
            found.extend(places.into_iter().filter(|place| Path::new(place).exists()));
        }
        for of in ["capsules", "snapshots", "forks", "templates"] {
            let left = names(&self.directory.join("data").join(of));
            found.extend(left.iter().map(|path| path.display().to_string()));
        }
        found
    }
}

/// The paths of what is in a directory; nothing if there is none.
pub fn names(of: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(of).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Drop for Site {
    fn drop(&mut self) {
        // Guests of a test that failed would slow down all that follow.
        if std::thread::panicking() {
            end_processes(&self.slots());
        }
    }
}

fn processes(slots: &SlotRange) -> Vec<i32> {
    let users: Vec<u32> = slots.iter().map(SlotNumber::uid).collect();
    let mut pids: Vec<i32> = names(Path::new("/proc"))
        .into_iter()
        .filter_map(|entry| {
            let pid = entry.file_name()?.to_str()?.parse().ok()?;
            // Whoever inherited an agent's VMMs may be slow to ask for their end.
            let lives = !stat(pid).first()?.starts_with('Z');
            (lives && users.contains(&entry.metadata().ok()?.uid())).then_some(pid)
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// The fields of proc(5)'s stat from the state on.
fn stat(pid: i32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').map(str::to_owned).collect());
    rest.unwrap_or_default()
}

fn end_processes(slots: &SlotRange) {
    for pid in processes(slots) {
        let _ended = end(pid);
    }
}

/// As a crash would.
pub fn end(pid: i32) -> nix::Result<()> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
}
