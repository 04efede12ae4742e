//! The way into a guest: one HTTP/2 connection to its envd, with the capsule's token on every call, and others for the
//! content of files.

mod clock;
mod content;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tower::service_fn;
use wrenn_proto::envd::v1::files_client::FilesClient;
use wrenn_proto::envd::v1::guest_client::GuestClient;
use wrenn_proto::envd::v1::ports_client::PortsClient;
use wrenn_proto::envd::v1::processes_client::ProcessesClient;
use wrenn_proto::envd::v1::{
    ConfigureRequest, HealthRequest, HealthResponse, PostRestoreRequest, PostRestoreResponse,
    PrepareSnapshotRequest,
};
use wrenn_proto::{CONNECTION_WINDOW, ENVD_PORT, FRAME, LARGEST_LISTING, STREAM_WINDOW, TOKEN};
use wrenn_vmm::failpoint;

pub use clock::{CLOCK_PATIENCE, ClockReading};
pub use content::{Content, Reading};

use crate::request_id::RequestId;
use crate::token::Token;

/// Between attempts at a guest that refuses: its network is there, its daemon not yet.
const RETRY: Duration = Duration::from_millis(2);
/// An attempt that hears nothing is followed by another after this, then after twice this, … The kernel's own
/// retransmission starts at a whole second, which is longer than a restore takes.
const FIRST_ATTEMPT: Duration = Duration::from_millis(40);
const LONGEST_ATTEMPT: Duration = Duration::from_secs(1);
const MOST_ATTEMPTS: usize = 4;
/// Syncing file systems before a snapshot.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("nothing answered at {address} within {waited:?}")]
    Unreachable { address: SocketAddr, waited: Duration },
    #[error("the connection to envd was not accepted")]
    Connect(#[source] tonic::transport::Error),
    #[error("envd refused: {}", .0.message())]
    Refused(#[source] Box<Status>),
    #[error("envd did not answer within {0:?}")]
    Timeout(Duration),
    #[error("envd did not confirm that the kernel's random numbers were reseeded")]
    NotReseeded,
}

/// Envd of one machine, for one life of it. Cheap to clone; every clone uses the same connections.
#[derive(Debug, Clone)]
pub struct Guest {
    address: Ipv4Addr,
    channel: Channel,
    content: Arc<Content>,
    token: Option<MetadataValue<Ascii>>,
}

impl Guest {
    /// Connects, trying until `deadline`. Without a token only `health` is allowed.
    pub async fn connect(
        address: Ipv4Addr,
        token: Option<&Token>,
        deadline: Instant,
    ) -> Result<Self, GuestError> {
        let guest = address;
        let address = SocketAddr::from((guest, ENVD_PORT));
        let started = Instant::now();
        let mut first = Some(
            reach(address, deadline)
                .await
                .ok_or_else(|| GuestError::Unreachable { address, waited: started.elapsed() })?,
        );
        let connector = service_fn(move |_: Uri| {
            let ready = first.take();
            async move {
                match ready {
                    Some(socket) => Ok(TokioIo::new(socket)),
                    None => reach_again(address).await,
                }
            }
        });
        let channel = endpoint().connect_with_connector(connector).await.map_err(GuestError::Connect)?;
        let content = Content::new(address, token);
        Ok(Self { address: guest, channel, content, token: token.and_then(Token::metadata) })
    }

    /// The same guest once it was given another token.
    pub fn with_token(self, token: &Token) -> Self {
        let content = Content::new(SocketAddr::from((self.address, ENVD_PORT)), Some(token));
        Self { token: token.metadata(), content, ..self }
    }

    /// A request that carries what every call into a guest carries.
    pub fn request<T>(&self, message: T, id: &RequestId) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert(TOKEN, token.clone());
        }
        id.put_into(request.metadata_mut());
        request
    }

    /// Where this host reaches the guest.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn files(&self) -> FilesClient<Channel> {
        FilesClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_LISTING)
    }

    /// What its files contain.
    pub fn content(&self) -> &Arc<Content> {
        &self.content
    }

    pub fn ports(&self) -> PortsClient<Channel> {
        PortsClient::new(self.channel.clone())
    }

    pub fn processes(&self) -> ProcessesClient<Channel> {
        ProcessesClient::new(self.channel.clone())
    }

    pub async fn health(&self, within: Duration) -> Result<HealthResponse, GuestError> {
        let request = self.request(HealthRequest {}, &RequestId::new());
        bounded(within, GuestClient::new(self.channel.clone()).health(request)).await
    }

    /// What every capsule of this host will be told, told before there is one: it need not be written again.
    pub async fn configure_golden(&self, name_servers: &[Ipv4Addr]) -> Result<(), GuestError> {
        let name_servers = name_servers.iter().map(ToString::to_string).collect();
        let request =
            self.request(ConfigureRequest { name_servers, ..Default::default() }, &RequestId::new());
        bounded(PREPARE_TIMEOUT, GuestClient::new(self.channel.clone()).configure(request)).await?;
        Ok(())
    }

    /// The last call before vCPUs stop: file systems are synced.
    pub async fn prepare_snapshot(&self, id: &RequestId) -> Result<(), GuestError> {
        let request = self.request(PrepareSnapshotRequest {}, id);
        bounded(PREPARE_TIMEOUT, GuestClient::new(self.channel.clone()).prepare_snapshot(request)).await?;
        Ok(())
    }

    /// The first call after a restore. An error here means that this machine must not be served.
    pub async fn post_restore(
        &self,
        message: PostRestoreRequest,
        id: &RequestId,
        within: Duration,
    ) -> Result<PostRestoreResponse, GuestError> {
        let request = self.request(message, id);
        let answer = bounded(within, GuestClient::new(self.channel.clone()).post_restore(request)).await?;
        failpoint!("handover.reseeded").await.map_err(|_| GuestError::NotReseeded)?;
        if answer.reseeded { Ok(answer) } else { Err(GuestError::NotReseeded) }
    }
}

async fn bounded<T>(
    within: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, GuestError> {
    match timeout(within, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(GuestError::Refused(Box::new(status))),
        Err(_) => Err(GuestError::Timeout(within)),
    }
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://envd")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
}

/// A later connection of the same life: the guest is there, or it is not.
async fn reach_again(address: SocketAddr) -> std::io::Result<TokioIo<TcpStream>> {
    let socket = reach(address, Instant::now() + LONGEST_ATTEMPT).await;
    socket.map(TokioIo::new).ok_or_else(|| std::io::ErrorKind::TimedOut.into())
}

/// A connection to a guest that may not be listening yet. An attempt that hears nothing goes on beside the
/// next one: its answer may only be late.
async fn reach(address: SocketAddr, deadline: Instant) -> Option<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut patience = FIRST_ATTEMPT;
    while Instant::now() < deadline {
        if attempts.len() < MOST_ATTEMPTS {
            attempts.push(TcpStream::connect(address));
        }
        let attempt_end = deadline.min(Instant::now() + patience);
        match timeout_at(attempt_end, attempts.next()).await {
            Ok(Some(Ok(socket))) => {
                // Small messages both ways: waiting to fill a segment would cost 40 ms a call.
                if socket.set_nodelay(true).is_ok() {
                    return Some(socket);
                }
            }
            Ok(_) => tokio::time::sleep(RETRY).await,
            Err(_) => patience = (patience * 2).min(LONGEST_ATTEMPT),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use wrenn_proto::envd::v1 as pb;
    use wrenn_proto::envd::v1::guest_server::{Guest as Service, GuestServer};

    use super::*;

    /// An envd whose kernel did not take new random numbers.
    struct Unseeded;

    #[tonic::async_trait]
    impl Service for Unseeded {
        async fn health(&self, _: Request<HealthRequest>) -> Result<tonic::Response<HealthResponse>, Status> {
            Err(Status::unimplemented("health"))
        }

        async fn configure(
            &self,
            _: Request<ConfigureRequest>,
        ) -> Result<tonic::Response<pb::ConfigureResponse>, Status> {
            Err(Status::unimplemented("configure"))
        }

        async fn prepare_snapshot(
            &self,
            _: Request<PrepareSnapshotRequest>,
        ) -> Result<tonic::Response<pb::PrepareSnapshotResponse>, Status> {
            Err(Status::unimplemented("prepare_snapshot"))
        }

        async fn post_restore(
            &self,
            _: Request<PostRestoreRequest>,
        ) -> Result<tonic::Response<PostRestoreResponse>, Status> {
            Ok(tonic::Response::new(PostRestoreResponse { reseeded: false, ..Default::default() }))
        }

        async fn step_clock(
            &self,
            _: Request<pb::StepClockRequest>,
        ) -> Result<tonic::Response<pb::StepClockResponse>, Status> {
            Err(Status::unimplemented("step_clock"))
        }

        async fn metrics(
            &self,
            _: Request<pb::MetricsRequest>,
        ) -> Result<tonic::Response<pb::MetricsResponse>, Status> {
            Err(Status::unimplemented("metrics"))
        }

        async fn grow_disk(
            &self,
            _: Request<pb::GrowDiskRequest>,
        ) -> Result<tonic::Response<pb::GrowDiskResponse>, Status> {
            Err(Status::unimplemented("grow_disk"))
        }
    }

    #[tokio::test]
    async fn a_guest_that_does_not_confirm_new_random_numbers_is_an_error() {
        const PATIENCE: Duration = Duration::from_secs(10);
        // Of the loopback's many addresses one that nothing else listens on.
        let address = Ipv4Addr::new(127, 0, 77, 1);
        let server = tonic::transport::Server::builder().add_service(GuestServer::new(Unseeded));
        let server = tokio::spawn(server.serve((address, ENVD_PORT).into()));
        let guest = Guest::connect(address, None, Instant::now() + PATIENCE).await.unwrap();
        let answer = guest.post_restore(PostRestoreRequest::default(), &RequestId::new(), PATIENCE).await;
        assert!(matches!(answer, Err(GuestError::NotReseeded)), "{answer:?}");
        server.abort();
    }

    #[tokio::test]
    async fn a_guest_that_is_not_there_is_given_up_in_time() {
        let start = Instant::now();
        let error =
            Guest::connect(Ipv4Addr::LOCALHOST, None, start + Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(error, GuestError::Unreachable { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
