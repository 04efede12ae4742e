//! The agent as a whole: what is started in which order, and stopped in which.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tower::layer::layer_fn;
use wrenn_proto::agent::v1::agent_server::AgentServer;
use wrenn_proto::{CONNECTION_WINDOW, CONTENT_WINDOW, FRAME};
use wrenn_vmm::disk::{self, DiskError, DiskOptions};
use wrenn_vmm::driver::{self, DriverError, DriverOptions};
use wrenn_vmm::firecracker::PageServerCommand;
use wrenn_vmm::network::{NetworkError, NetworkOptions, SlotAllocator, SlotClaim, SlotRange};
use wrenn_vmm::paths::{HostPaths, PathError};
use wrenn_vmm::process::cgroup::Cgroups;

use crate::capsule::{
    Admission, AdoptError, CapsuleRegistry, Engine, Goldens, Leftovers, Limits, TemplateTurns, WarmPool,
};
use crate::config::{Config, OnStop};
use crate::control::{
    ControlClient, ControlError, Credentials, CredentialsError, CredentialsFile, HostLink, LinkError,
};
use crate::grpc::{Accepted, AgentService, ServerTls, Timed, TlsConnection, TlsError};
use crate::host::{self, HostProbe};
use crate::lock::{DirectoryLock, LockError};
use crate::metrics::Meters;
use crate::size::Size;
use crate::{PAGE_SERVER, control, dns, grpc, http, proxy, upkeep};

/// Large enough for a process's whole standard input at its start.
const LARGEST_REQUEST: usize = 16 << 20;
/// Finds connections that died without saying so.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Calls that may be given up before they are looked at. Beyond that HTTP/2 servers end the connection, by default at the
/// 21st: one user who comes and goes would end the streams of all.
const GIVEN_UP_EARLY: usize = 1 << 20;
/// One part in so many of the data file system is for golden snapshots, unless another budget is set.
const GOLDEN_SHARE: u64 = 4;
/// How long connections may take to end once everything behind them has.
const FAREWELL: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot make {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Paths(#[from] PathError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("this host is not registered: start once with `wrenn-agent serve --register TOKEN`")]
    NotRegistered,
    #[error("cannot register this host")]
    Register(#[from] LinkError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare the disk store")]
    Disk(#[from] DiskError),
    #[error("cannot use the VMM")]
    Vmm(#[from] DriverError),
    #[error("cannot set up the network")]
    Network(#[from] NetworkError),
    #[error("cannot look at what an earlier agent left")]
    Adopt(#[from] AdoptError),
    #[error("cannot record metrics")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// A serving agent.
pub struct Agent {
    on_stop: OnStop,
    paths: HostPaths,
    engine: Arc<Engine>,
    capsules: Arc<CapsuleRegistry>,
    cgroups: Cgroups,
    address: SocketAddr,
    /// New calls are refused, watchers end.
    stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    lock: DirectoryLock,
    claim: SlotClaim,
}

impl Agent {
    /// Starts to serve. When this returns, what an earlier agent left is settled and calls are accepted.
    // Boxed: its code is then made with this crate, once, and not with each program that calls it.
    pub fn start(
        config: Config,
        register: Option<SecretString>,
    ) -> BoxFuture<'static, Result<Self, AgentError>> {
        Box::pin(Self::begin(config, register))
    }

    async fn begin(config: Config, register: Option<SecretString>) -> Result<Self, AgentError> {
        // An error means that it is installed already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let recorder = http::recorder()?;
        let paths = HostPaths::new(&config.dir)?;
        std::fs::create_dir_all(paths.root())
            .map_err(|source| AgentError::Directory { path: paths.root().to_owned(), source })?;
        let lock = DirectoryLock::acquire(paths.root(), &paths.lock_file())?;
        let claim = SlotClaim::take(&config.slots)?;
        let file = CredentialsFile::within(&paths.agent());
        let stored = file.load()?;
        if stored.is_none() && register.is_none() {
            return Err(AgentError::NotRegistered);
        }
        let listener = listen(config.listen).await?;
        let operators = listen(config.http_listen).await?;
        let address = listener.local_addr().unwrap_or(config.listen);

        let Host { engine, probe, leftovers, cgroups } = Host::open(&config, &paths).await?;
        for slot in leftovers.slots().iter().filter(|slot| !config.slots.contains(**slot)) {
            if let Err(error) = claim.extend(&SlotRange::from(*slot)) {
                tracing::error!(%slot, error = %crate::report(&error), "a capsule runs in a slot of another agent's");
            }
        }
        let client = ControlClient::new(&config.api_url)?;
        let offer =
            Offer { client: &client, file: &file, probe: &probe, address: config.advertised(address) };
        let credentials = offer.enrol(stored, register).await?;
        let tls = Arc::new(ServerTls::new(&credentials)?);
        let capsules = Arc::new(CapsuleRegistry::new(engine.clone()));
        leftovers.settle(&engine, &capsules).await;
        let keeper = engine.clone();
        engine.tasks.spawn(async move { Goldens::keep_to_budget(&keeper).await });
        if config.warm_pool > 0 {
            engine.tasks.spawn(WarmPool::tend(engine.clone()));
        }

        let stop = CancellationToken::new();
        let link = HostLink {
            client,
            file,
            credentials,
            tls: tls.clone(),
            probe: probe.clone(),
            capsules: capsules.clone(),
        };
        let service = AgentService { capsules: capsules.clone(), probe, stop: stop.clone() };
        let Accepted { grpc, proxy: proxied } = grpc::accept(listener, tls, stop.clone());
        let servers = vec![
            tokio::spawn(link.run(stop.clone())),
            tokio::spawn(serve_grpc(grpc, service, stop.clone())),
            tokio::spawn(proxy::serve(proxied, capsules.clone(), stop.clone())),
            tokio::spawn(crate::metrics::sample(capsules.clone(), stop.clone())),
            tokio::spawn(upkeep::trim(paths.clone(), stop.clone())),
            tokio::spawn(serve_http(operators, capsules.clone(), recorder, stop.clone())),
        ];
        tracing::info!(%address, dir = %paths.root().display(), version = crate::VERSION, "serving");
        Ok(Self {
            on_stop: config.on_stop,
            paths,
            engine,
            capsules,
            cgroups,
            address,
            stop,
            servers,
            lock,
            claim,
        })
    }

    /// Where the gRPC service listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The capsules of this host.
    pub fn capsules(&self) -> &Arc<CapsuleRegistry> {
        &self.capsules
    }

    /// Stops in order: no new work, transitions under way to their end, capsules as configured, then the servers.
    pub async fn stop(self) {
        let Self { on_stop, paths, engine, capsules, cgroups, address: _, stop, servers, lock, claim } = self;
        tracing::info!(?on_stop, "stopping");
        capsules.close();
        stop.cancel();
        if on_stop == OnStop::Pause {
            capsules.pause_all("AGENT_STOPPING").await;
        }
        let running = capsules.count_running();
        capsules.leave_all().await;
        for server in servers {
            let abort = server.abort_handle();
            if tokio::time::timeout(FAREWELL, server).await.is_err() {
                abort.abort();
            }
        }
        drop(capsules);
        match alone(engine).await {
            Some(engine) => {
                if let Err(error) = engine.slots.shutdown().await {
                    tracing::error!(error = %crate::report(&error), "not every spare network slot could be removed");
                }
            }
            None => {
                tracing::error!(
                    "something has not ended: network slots and the host's packet filter rules stay"
                );
            }
        }
        cgroups.close().await;
        if on_stop == OnStop::Pause
            && running == 0
            && let Err(error) = disk::unmount(&paths).await
        {
            tracing::error!(error = %crate::report(&error), "the disk store stays mounted");
        }
        drop((claim, lock));
        tracing::info!(running, "stopped; capsules that ran go on");
    }
}

/// What nobody else holds any more. Drivers and servers have ended by now; what a connection was last asked for may
/// take a moment longer.
async fn alone(mut engine: Arc<Engine>) -> Option<Engine> {
    let deadline = Instant::now() + FAREWELL;
    loop {
        engine = match Arc::try_unwrap(engine) {
            Ok(engine) => return Some(engine),
            Err(_) if Instant::now() > deadline => return None,
            Err(shared) => shared,
        };
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What this host makes capsules with, and what it found when it looked.
struct Host {
    engine: Arc<Engine>,
    probe: Arc<HostProbe>,
    leftovers: Leftovers,
    cgroups: Cgroups,
}

/// This program once more, whatever has become of its file meanwhile.
fn page_server() -> PageServerCommand {
    PageServerCommand { program: "/proc/self/exe".into(), arguments: vec![PAGE_SERVER.into()] }
}

impl Host {
    async fn open(config: &Config, paths: &HostPaths) -> Result<Self, AgentError> {
        let options =
            DiskOptions { choice: config.disk_store, data_size_bytes: config.store_size.map(Size::bytes) };
        let disks = disk::prepare(paths, &options).await?;
        paths.create_all()?;
        let cgroups = Cgroups::open(paths, &config.cgroups).await;
        let options = DriverOptions {
            vmm: config.vmm,
            kvm: config.kvm,
            qemu_binary: None,
            firecracker_binary: config.firecracker_binary.clone(),
            restore: config.restore,
            page_server: Some(page_server()),
            run: paths.run().to_owned(),
            cgroups: cgroups.clone(),
        };
        let vmm = driver::open(&options).await?;
        let leftovers = Leftovers::inspect(paths, vmm.as_ref(), &config.slots).await?;
        if let Err(error) = cgroups.sweep().await {
            tracing::error!(%error, "control groups of machines that ended are left");
        }
        let name_servers = if config.dns.is_empty() { dns::host_name_servers() } else { config.dns.clone() };
        let options = NetworkOptions {
            slots: config.slots,
            pool: config.slot_pool,
            name_servers: name_servers.clone(),
        };
        let slots = SlotAllocator::start(options, leftovers.slots()).await?;
        let probe = Arc::new(HostProbe {
            rooms: vec![paths.data(), paths.root().to_owned()],
            vmm: vmm.summary(),
            disk_store: disks.kind().to_string(),
        });
        let golden_budget_mib = match config.golden_budget_mib {
            Some(budget) => budget,
            None => (disks.total_bytes().await? >> 20) / GOLDEN_SHARE,
        };
        tracing::info!(vmm = probe.vmm, disk_store = probe.disk_store, ?name_servers, "this host");
        let engine = Arc::new(Engine {
            paths: paths.clone(),
            vmm,
            disks,
            slots,
            admission: Admission::new(probe.clone()),
            goldens: Goldens::default(),
            golden_budget_mib,
            pool: WarmPool::new(config.warm_pool),
            template_turns: TemplateTurns::default(),
            limits: Limits::of_host(
                host::cpus(),
                host::memory().total_mib,
                config.default_rootfs_size.mib_ceil(),
            ),
            name_servers,
            meters: Arc::new(Meters::new(paths.clone())),
            golden_timeout: config.golden_timeout,
            grace: config.reconnect_grace,
            tasks: TaskTracker::new(),
        });
        Ok(Self { engine, probe, leftovers, cgroups })
    }
}

/// This host, as it offers itself to the control plane.
struct Offer<'a> {
    client: &'a ControlClient,
    file: &'a CredentialsFile,
    probe: &'a HostProbe,
    address: String,
}

impl Offer<'_> {
    /// Credentials: newly issued where a registration token was given, else those that are stored.
    async fn enrol(
        self,
        stored: Option<Credentials>,
        token: Option<SecretString>,
    ) -> Result<Credentials, AgentError> {
        let Some(token) = token else { return stored.ok_or(AgentError::NotRegistered) };
        match control::register(self.client, self.file, &token, self.address, self.probe).await {
            Ok(credentials) => {
                tracing::info!(host = credentials.host_id, "registered");
                Ok(credentials)
            }
            // The token may have been spent by an earlier start with the same command line.
            Err(error) => match stored {
                Some(stored) => {
                    tracing::warn!(error = %crate::report(&error), "not registered again; going on as before");
                    Ok(stored)
                }
                None => Err(error.into()),
            },
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })
}

async fn serve_grpc(
    incoming: ReceiverStream<io::Result<TlsConnection>>,
    service: AgentService,
    stop: CancellationToken,
) {
    let service = AgentServer::new(service).max_decoding_message_size(LARGEST_REQUEST);
    let served = Server::builder()
        .initial_stream_window_size(CONTENT_WINDOW)
        .max_frame_size(FRAME)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP_EARLY))
        .layer(layer_fn(Timed))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(error = %crate::report(&error), "the gRPC service ended");
    }
}

async fn serve_http(
    listener: TcpListener,
    capsules: Arc<CapsuleRegistry>,
    recorder: PrometheusHandle,
    stop: CancellationToken,
) {
    if let Err(error) = http::serve(listener, capsules, recorder, stop).await {
        tracing::error!(%error, "the operators' HTTP service ended");
    }
}
