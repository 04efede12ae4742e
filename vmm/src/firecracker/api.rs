//! Firecracker's API: HTTP over a Unix socket, one connection for each request.
//!
//! Only what a capsule needs is here. All paths in requests are as Firecracker sees them in its jail.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

/// For requests that change a setting: they take milliseconds.
const PROMPT: Duration = Duration::from_secs(10);
/// For a start, in which the kernel is read and unpacked into the guest's memory.
const START: Duration = Duration::from_secs(60);
/// No answer to a request here is longer.
const LONGEST_ANSWER: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// `fault` is Firecracker's own account of it.
    #[error("Firecracker refused {method} {path} ({}): {fault}", status.as_u16())]
    Refused { method: Method, path: String, status: StatusCode, fault: String },
    #[error("Firecracker did not answer {method} {path} within {} ms", after.as_millis())]
    Deadline { method: Method, path: String, after: Duration },
    #[error("connecting to Firecracker at {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("sending {method} {path} to Firecracker")]
    Exchange { method: Method, path: String, source: hyper::Error },
    /// Something that is no answer to the request.
    #[error("Firecracker answered {method} {path} with what is not understood: {what}")]
    Garbage { method: Method, path: String, what: String },
}

#[derive(Clone, Debug, Serialize)]
pub struct MachineConfiguration {
    /// 1, or an even number up to 32.
    pub vcpu_count: u32,
    pub mem_size_mib: u32,
    /// Needed for snapshots of what has changed.
    pub track_dirty_pages: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct BootSource {
    /// An uncompressed kernel.
    pub kernel_image_path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub enum CacheType {
    /// The guest's flushes are not carried out.
    Unsafe,
    /// They are.
    Writeback,
}

#[derive(Clone, Debug, Serialize)]
pub struct Drive {
    /// Letters, digits and `_`; also in the request's path.
    pub drive_id: String,
    pub path_on_host: PathBuf,
    pub is_root_device: bool,
    pub is_read_only: bool,
    pub cache_type: CacheType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `size` tokens, refilled evenly over `refill_time` milliseconds, after the first `one_time_burst` ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TokenBucket {
    pub size: u64,
    pub one_time_burst: u64,
    pub refill_time: u64,
}

impl TokenBucket {
    /// Bytes a second, with `burst` bytes more at the beginning.
    pub fn bytes_per_second(rate: u64, burst: u64) -> Self {
        Self { size: rate, one_time_burst: burst, refill_time: 1000 }
    }
}

/// What is not given is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

#[derive(Clone, Debug, Serialize)]
pub struct NetworkInterface {
    /// Letters, digits and `_`; also in the request's path.
    pub iface_id: String,
    /// The TAP device.
    pub host_dev_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
    /// Of what it receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct EntropyDevice {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub enum MmdsVersion {
    V1,
    /// With a session token.
    V2,
}

#[derive(Clone, Debug, Serialize)]
pub struct MmdsConfig {
    pub version: MmdsVersion,
    /// Interfaces that reach the metadata.
    pub network_interfaces: Vec<String>,
    /// 169.254.169.254 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<std::net::Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum SnapshotType {
    Full,
    /// What has changed since the last snapshot or the load.
    Diff,
}

#[derive(Clone, Debug, Serialize)]
pub struct SnapshotCreate {
    pub snapshot_type: SnapshotType,
    /// Becomes the state of the devices.
    pub snapshot_path: PathBuf,
    /// Becomes the memory.
    pub mem_file_path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MemoryBackendType {
    /// A flat file, mapped privately.
    File,
    /// The socket of a page server.
    Uffd,
}

#[derive(Clone, Debug, Serialize)]
pub struct MemoryBackend {
    pub backend_type: MemoryBackendType,
    pub backend_path: PathBuf,
}

/// Gives a restored interface another TAP device than the saved one had.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkOverride {
    pub iface_id: String,
    pub host_dev_name: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct SnapshotLoad {
    pub snapshot_path: PathBuf,
    pub mem_backend: MemoryBackend,
    /// It is not kept in the snapshot: without it the next one cannot be a diff.
    pub track_dirty_pages: bool,
    /// Let the vCPUs run at once.
    pub resume_vm: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    pub id: String,
    pub state: InstanceState,
    pub vmm_version: String,
    pub app_name: String,
}

/// What running vCPUs can be told to be.
#[derive(Clone, Copy, Debug, Serialize)]
enum VmState {
    Paused,
    Resumed,
}

/// How Firecracker tells why not.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// One Firecracker, by the socket it listens on. Requests may be cut off: Firecracker then still carries out
/// what it has read.
#[derive(Clone, Debug)]
pub struct Firecracker {
    socket: PathBuf,
}

impl Firecracker {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Fine as a question whether it is up.
    pub async fn instance_info(&self) -> Result<InstanceInfo, ApiError> {
        self.instance_info_within(PROMPT).await
    }

    /// It answers one request after the other: an answer means that it is done with what was asked of it before.
    pub async fn instance_info_within(&self, within: Duration) -> Result<InstanceInfo, ApiError> {
        let call = Call { method: Method::GET, path: "/".to_owned(), within };
        let body = self.send(&call, Vec::new()).await?;
        call.parse(&body)
    }

    pub async fn machine_configuration(&self, request: &MachineConfiguration) -> Result<(), ApiError> {
        self.put("/machine-config", request).await
    }

    pub async fn boot_source(&self, request: &BootSource) -> Result<(), ApiError> {
        self.put("/boot-source", request).await
    }

    pub async fn drive(&self, request: &Drive) -> Result<(), ApiError> {
        self.put(&format!("/drives/{}", request.drive_id), request).await
    }

    pub async fn network_interface(&self, request: &NetworkInterface) -> Result<(), ApiError> {
        self.put(&format!("/network-interfaces/{}", request.iface_id), request).await
    }

    pub async fn entropy(&self, request: &EntropyDevice) -> Result<(), ApiError> {
        self.put("/entropy", request).await
    }

    /// Before the machine runs or is restored; the content comes after it.
    pub async fn mmds_config(&self, request: &MmdsConfig) -> Result<(), ApiError> {
        self.put("/mmds/config", request).await
    }

    /// Replaces what the guest finds at the metadata address. A snapshot does not keep it. An object of at most
    /// 51200 bytes, unless Firecracker was started with another limit.
    pub async fn mmds(&self, content: &serde_json::Map<String, Value>) -> Result<(), ApiError> {
        self.put("/mmds", content).await
    }

    /// Boots what was configured.
    pub async fn start(&self) -> Result<(), ApiError> {
        let action = serde_json::json!({ "action_type": "InstanceStart" });
        self.change(Method::PUT, "/actions", &action, START).await
    }

    /// Stops the vCPUs.
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.vm_state(VmState::Paused).await
    }

    /// Lets them run again.
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.vm_state(VmState::Resumed).await
    }

    /// The vCPUs must be stopped. Writes as much as has changed, so the caller knows how long that may take.
    pub async fn create_snapshot(&self, request: &SnapshotCreate, within: Duration) -> Result<(), ApiError> {
        self.change(Method::PUT, "/snapshot/create", request, within).await
    }

    /// Instead of any configuration but the log's, of a Firecracker that has none. With a page server it ends only
    /// if that answers: a hang shows as a deadline here.
    pub async fn load_snapshot(&self, request: &SnapshotLoad, within: Duration) -> Result<(), ApiError> {
        self.change(Method::PUT, "/snapshot/load", request, within).await
    }

    async fn vm_state(&self, state: VmState) -> Result<(), ApiError> {
        self.change(Method::PATCH, "/vm", &serde_json::json!({ "state": state }), PROMPT).await
    }

    async fn put(&self, path: &str, request: &impl Serialize) -> Result<(), ApiError> {
        self.change(Method::PUT, path, request, PROMPT).await
    }

    async fn change(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
        within: Duration,
    ) -> Result<(), ApiError> {
        let call = Call { method, path: path.to_owned(), within };
        // Only a path that is not UTF-8 cannot be said in JSON.
        let body = serde_json::to_vec(request).map_err(|error| call.garbage(error.to_string()))?;
        self.send(&call, body).await.map(drop)
    }

    /// The body of an answer that says it went well.
    async fn send(&self, call: &Call, body: Vec<u8>) -> Result<Bytes, ApiError> {
        let (status, answer) =
            timeout(call.within, self.exchange(call, body)).await.unwrap_or_else(|_| {
                let Call { method, path, within } = call.clone();
                Err(ApiError::Deadline { method, path, after: within })
            })?;
        if status.is_success() {
            return Ok(answer);
        }
        let fault = match serde_json::from_slice(&answer) {
            Ok(Fault { fault_message }) => fault_message,
            Err(_) => String::from_utf8_lossy(&answer).chars().take(500).collect(),
        };
        let Call { method, path, .. } = call.clone();
        Err(ApiError::Refused { method, path, status, fault })
    }

    async fn exchange(&self, call: &Call, body: Vec<u8>) -> Result<(StatusCode, Bytes), ApiError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ApiError::Connect { socket: self.socket.clone(), source })?;
        let failed =
            |source| ApiError::Exchange { method: call.method.clone(), path: call.path.clone(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let mut request =
            Request::builder().method(&call.method).uri(&call.path).header(header::HOST, "localhost");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| call.garbage(error.to_string()))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(failed)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
            let body = body.map_err(|error| call.garbage(error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // It tells the answer what went wrong, if anything.
            _ = &mut connection => answer.await,
        }
    }
}

/// One request, as errors name it.
#[derive(Clone, Debug)]
struct Call {
    method: Method,
    path: String,
    within: Duration,
}

impl Call {
    fn garbage(&self, what: String) -> ApiError {
        ApiError::Garbage { method: self.method.clone(), path: self.path.clone(), what }
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(body).map_err(|error| self.garbage(error.to_string()))
    }
}
