//! The `Guest` service: the machine's health, configuration, and what surrounds a snapshot.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::{Request, Response, Status};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::guest_server::Guest;

use crate::access::{Access, check_length};
use crate::connections::{ConnectionId, Connections};
use crate::identity;
use crate::launch::{Invalid, Surroundings, check_env};
use crate::metrics::{Disk, MetricsError, metrics};
use crate::ports::Ports;
use crate::system::{MOST_ENTROPY, System};

/// The least entropy a restore brings, in bytes: the size of the kernel's pool state.
const LEAST_ENTROPY: usize = 64;
/// 2020-01-01, nanoseconds since the Unix epoch. An earlier clock is a mistake, not a time.
const EARLIEST_CLOCK_NS: i64 = 1_577_836_800_000_000_000;

/// What processes are given, as configured last.
#[derive(Debug, Default)]
pub struct Configuration {
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    identity: Vec<pb::EnvVar>,
    env: Vec<pb::EnvVar>,
    default_user: String,
}

impl Configuration {
    /// For a process started now.
    pub fn surroundings(&self) -> Surroundings {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let env = current.identity.iter().chain(&current.env).cloned().collect();
        Surroundings { env, default_user: current.default_user.clone() }
    }

    fn set(&self, env: Vec<pb::EnvVar>, default_user: String) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (current.env, current.default_user) = (env, default_user);
    }

    fn set_identity(&self, identity: &pb::Identity) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).identity = variables(identity);
    }

    /// Whether the machine is that one already.
    fn has_identity(&self, identity: &pb::Identity) -> bool {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).identity == variables(identity)
    }
}

/// What an identity is to a process.
fn variables(identity: &pb::Identity) -> Vec<pb::EnvVar> {
    let var = |name: &str, value: &str| pb::EnvVar { name: name.into(), value: value.into() };
    vec![
        var("WRENN_SANDBOX", "true"),
        var("WRENN_CAPSULE_ID", &identity.capsule_id),
        var("WRENN_TEMPLATE_ID", &identity.template_id),
    ]
}

fn clock_failed(error: std::io::Error) -> Status {
    Status::internal(format!("cannot set the clock: {error}"))
}

/// The service over one machine.
#[derive(Debug, Clone)]
pub struct GuestService {
    pub system: Arc<dyn System>,
    pub access: Arc<Access>,
    pub configuration: Arc<Configuration>,
    pub connections: Arc<Connections>,
    pub ports: Arc<Ports>,
}

impl GuestService {
    /// Everything about a configuration but its token that can be wrong, before any of it counts.
    fn check(&self, request: &pb::ConfigureRequest) -> Result<Vec<Ipv4Addr>, Status> {
        check_env(&request.env, "env")?;
        if request.default_user.contains(['\0', ':', '\n']) {
            let message = "not the name of a user".to_owned();
            return Err(Invalid { field: "default_user", message }.into());
        }
        Ok(identity::check_name_servers(&request.name_servers, "name_servers")?)
    }

    /// Sets the clock; returns by how much it was behind, in nanoseconds.
    fn set_clock(&self, to_ns: i64) -> std::io::Result<i64> {
        let before = self.system.wall_clock_ns()?;
        self.system.set_wall_clock_ns(to_ns)?;
        Ok(to_ns.saturating_sub(before))
    }
}

#[tonic::async_trait]
impl Guest for GuestService {
    async fn health(
        &self,
        _request: Request<pb::HealthRequest>,
    ) -> Result<Response<pb::HealthResponse>, Status> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(pb::HealthResponse { version, configured: self.access.is_fixed() }))
    }

    async fn configure(
        &self,
        request: Request<pb::ConfigureRequest>,
    ) -> Result<Response<pb::ConfigureResponse>, Status> {
        let request = request.into_inner();
        let servers = self.check(&request)?;
        self.access.check(&request.token)?;
        let token = request.token.clone();
        identity::set_name_servers(&servers, self.system.as_ref())?;
        self.configuration.set(request.env, request.default_user);
        self.access.fix(&token);
        if self.access.is_fixed() {
            self.ports.begin();
        }
        Ok(Response::new(pb::ConfigureResponse {}))
    }

    async fn prepare_snapshot(
        &self,
        _request: Request<pb::PrepareSnapshotRequest>,
    ) -> Result<Response<pb::PrepareSnapshotResponse>, Status> {
        self.ports.rest().await;
        let system = Arc::clone(&self.system);
        // Without a token this is the snapshot that every capsule of the image starts from.
        let first = !self.access.is_fixed();
        let prepare = move || {
            if first {
                system.warm_up();
                // Only saves time later: an image in which it cannot be written is as good.
                let _ = identity::apply(&identity::placeholder(), system.as_ref());
            }
            system.sync();
        };
        tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|error| Status::internal(format!("file systems were not synced: {error}")))?;
        self.ports.prepared();
        Ok(Response::new(pb::PrepareSnapshotResponse {}))
    }

    async fn post_restore(
        &self,
        request: Request<pb::PostRestoreRequest>,
    ) -> Result<Response<pb::PostRestoreResponse>, Status> {
        let connection = request.extensions().get::<ConnectionId>().copied();
        let request = request.into_inner();
        let invalid = |field, message: String| Status::from(Invalid { field, message });
        if !(LEAST_ENTROPY..=MOST_ENTROPY).contains(&request.entropy.len()) {
            let message = format!("{LEAST_ENTROPY} to {MOST_ENTROPY} bytes are needed");
            return Err(invalid("entropy", message));
        }
        if request.wall_clock_ns < EARLIEST_CLOCK_NS {
            return Err(invalid("wall_clock_ns", "lies in the past".to_owned()));
        }
        let identity = request.identity.ok_or_else(|| invalid("identity", "is missing".to_owned()))?;
        identity::check(&identity)?;
        let configuration =
            request.configuration.ok_or_else(|| invalid("configuration", "is missing".to_owned()))?;
        if configuration.token.is_empty() && !self.access.is_fixed() {
            return Err(invalid("token", "is missing, and none is fixed".to_owned()));
        }
        let servers = self.check(&configuration)?;
        // May be another than the one that this call came with: that was the life before, perhaps another's.
        check_length(&configuration.token)?;
        let token = configuration.token.clone();

        // Random numbers first: whatever follows may use some.
        let system = self.system.as_ref();
        let reseeded = system.add_entropy(&request.entropy).and_then(|()| system.reseed());
        let clock_step_ns = self.set_clock(request.wall_clock_ns).map_err(clock_failed)?;
        // A machine that has no token yet has never run anything that could have connections, or that could have made
        // these files its own so that nobody can write them: that must not keep the machine from going on.
        let lived_before = self.access.is_fixed();
        let applied = identity::apply(&identity, system);
        if !self.configuration.has_identity(&identity) {
            applied?;
        }
        let told = identity::set_name_servers(&servers, system);
        if !lived_before {
            told?;
        }
        self.configuration.set_identity(&identity);
        self.configuration.set(configuration.env, configuration.default_user);
        self.access.rotate(&token);
        // Their other ends belong to an earlier life of this machine.
        self.connections.close_all_but(connection);
        if lived_before && !request.goes_on {
            // One that is left is refused by the host as soon as it is used.
            let _ = system.end_connections();
        }
        self.ports.begin_anew();
        let wall_clock_ns = system.wall_clock_ns().map_err(clock_failed)?;
        Ok(Response::new(pb::PostRestoreResponse {
            clock_step_ns,
            reseeded: reseeded.is_ok(),
            wall_clock_ns,
        }))
    }

    async fn step_clock(
        &self,
        request: Request<pb::StepClockRequest>,
    ) -> Result<Response<pb::StepClockResponse>, Status> {
        let by_ns = request.into_inner().by_ns;
        let mut wall_clock_ns = self.system.wall_clock_ns().map_err(clock_failed)?;
        if by_ns != 0 {
            wall_clock_ns =
                wall_clock_ns.checked_add(by_ns).filter(|stepped| *stepped >= 0).ok_or_else(|| Invalid {
                    field: "by_ns",
                    message: "leads out of the clock's range".into(),
                })?;
            self.system.set_wall_clock_ns(wall_clock_ns).map_err(clock_failed)?;
        }
        Ok(Response::new(pb::StepClockResponse { wall_clock_ns }))
    }

    async fn metrics(
        &self,
        _request: Request<pb::MetricsRequest>,
    ) -> Result<Response<pb::MetricsResponse>, Status> {
        Ok(Response::new(metrics()?))
    }

    async fn grow_disk(
        &self,
        _request: Request<pb::GrowDiskRequest>,
    ) -> Result<Response<pb::GrowDiskResponse>, Status> {
        let system = Arc::clone(&self.system);
        tokio::task::spawn_blocking(move || system.grow_root())
            .await
            .map_err(|error| Status::internal(format!("the disk was not grown: {error}")))??;
        let disk = Disk::of(Path::new("/")).map_err(MetricsError::Disk)?;
        Ok(Response::new(pb::GrowDiskResponse { disk_total_bytes: disk.total }))
    }
}
