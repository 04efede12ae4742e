//! Answers a guest's questions for names where its egress policy names hosts.
//!
//! ```text
//!  guest ── port 53 of whomever ──▶ namespace: redirected ──▶ forwarder ──▶ name servers, from the host
//!                                     set `hosts` ◀── addresses of allowed names, before the guest is told
//! ```
//! The forwarder listens in the slot's namespace and belongs to the process that holds the slot. While there is none
//! (the agent restarts) the guest gets no answers, and the rules stay.
//!
//! What it does not do: a guest that knows the address of a denied name by other means may reach it. To
//! deny names for certain, everything is denied but what is allowed.

mod question;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::question::{Answer, MAX_QUESTION, Question, Reading, Reply, Transport};
use super::{
    NetworkError, address::NAMESPACE_ADDRESS, egress::EgressPolicy, learnt::LearntAddresses,
    namespace::Enter as _, rules::DNS_PORT,
};
use crate::failure::{Doing as _, Failure, blocking};

/// Questions of one guest that name servers are asked at a time; more are not heard.
const MAX_UNDER_WAY: usize = 32;
/// Connections of one guest.
const MAX_STREAMS: usize = 16;
/// How long one name server may take. Guests' resolvers wait five seconds and ask again.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest may take to send a question, or to take an answer, on a connection.
const GUEST_PATIENCE: Duration = Duration::from_secs(10);
/// After a socket failed, most likely because the process has too many.
const RECOVERY: Duration = Duration::from_millis(100);
/// More than name servers are told that a datagram may have.
const MAX_DATAGRAM: usize = 4096;
/// The most that a stream's length can say.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Serves one slot until it is stopped or dropped.
#[derive(Debug)]
pub struct NameForwarder {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for NameForwarder {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl NameForwarder {
    /// Listens in the namespace, whose rules must be in place.
    pub async fn start(
        namespace: Arc<OwnedFd>,
        policy: EgressPolicy,
        name_servers: Vec<Ipv4Addr>,
    ) -> Result<Self, NetworkError> {
        let (datagrams, streams, learnt) = blocking(move || {
            namespace.entered(|| {
                let (datagrams, streams) = listen().doing(|| "listening for a guest's questions")?;
                Ok((datagrams, streams, LearntAddresses::open()?))
            })
        })
        .await?;
        let adopt =
            || -> io::Result<_> { Ok((UdpSocket::from_std(datagrams)?, TcpListener::from_std(streams)?)) };
        let (datagrams, streams) = adopt().doing(|| "listening for a guest's questions")?;
        let service = Arc::new(Service {
            policy,
            name_servers,
            learnt: Arc::new(Mutex::new(learnt)),
            under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (stop, tasks) = (service.stop.clone(), service.tasks.clone());
        tasks.spawn(service.clone().serve_datagrams(Arc::new(datagrams)));
        tasks.spawn(service.serve_streams(streams));
        Ok(Self { stop, tasks })
    }

    /// Returns when nothing of it is left: no socket in the namespace, no address that is still being let in.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn listen() -> io::Result<(StdUdpSocket, StdTcpListener)> {
    let address = (NAMESPACE_ADDRESS, DNS_PORT);
    let datagrams = StdUdpSocket::bind(address)?;
    let streams = StdTcpListener::bind(address)?;
    datagrams.set_nonblocking(true)?;
    streams.set_nonblocking(true)?;
    Ok((datagrams, streams))
}

/// Of one slot.
struct Service {
    policy: EgressPolicy,
    name_servers: Vec<Ipv4Addr>,
    learnt: Arc<Mutex<LearntAddresses>>,
    under_way: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Service {
    async fn serve_datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; MAX_QUESTION + 1];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                () = self.stop.cancelled() => return,
            };
            let (length, guest) = match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "receiving a guest's question");
                    sleep(RECOVERY).await;
                    continue;
                }
            };
            match Question::read(&self.policy, &buffer[..length], Transport::Datagram) {
                Reading::Ignore => {}
                // A guest that does not take its answers loses them.
                Reading::Answer(answer) => drop(socket.try_send_to(&answer, guest)),
                Reading::Ask(question) => {
                    let Ok(permit) = self.under_way.clone().try_acquire_owned() else { continue };
                    let (service, socket) = (self.clone(), socket.clone());
                    self.tasks.spawn(async move {
                        if let Some(answer) = service.resolve(&question).await {
                            drop(socket.try_send_to(&answer, guest));
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn serve_streams(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_STREAMS));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                sleep(RECOVERY).await;
                continue;
            };
            // One more than there is room for is closed at once.
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let service = self.clone();
            self.tasks.spawn(async move {
                // However it ends, the guest sees it.
                let _ended = service.serve_stream(stream).await;
                drop(place);
            });
        }
    }

    /// Questions one after the other, until the guest ends or does what it may not.
    async fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let bytes = tokio::select! {
                bytes = timeout(GUEST_PATIENCE, receive(&mut stream, MAX_QUESTION)) => bytes??,
                () = self.stop.cancelled() => return Ok(()),
            };
            let answer = match Question::read(&self.policy, &bytes, Transport::Stream) {
                Reading::Ignore => return Ok(()),
                Reading::Answer(answer) => answer,
                Reading::Ask(question) => {
                    let Ok(_permit) = self.under_way.acquire().await else { return Ok(()) };
                    let Some(answer) = self.resolve(&question).await else { return Ok(()) };
                    answer
                }
            };
            tokio::select! {
                sent = timeout(GUEST_PATIENCE, send(&mut stream, &answer)) => sent??,
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// None when there is nothing to say any more.
    async fn resolve(&self, question: &Question) -> Option<Vec<u8>> {
        let mut answer = tokio::select! {
            answer = self.ask(question) => answer,
            () = self.stop.cancelled() => return None,
        };
        // Not given up once begun: after a stop, nothing is let in.
        if let Err(error) = self.let_reach(std::mem::take(&mut answer.addresses)).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a name's addresses stay out of reach");
            answer = question.failure();
        }
        answer.encode().ok()
    }

    async fn let_reach(&self, addresses: Vec<(Ipv4Addr, Duration)>) -> Result<(), Failure> {
        if addresses.is_empty() {
            return Ok(());
        }
        let learnt = self.learnt.clone();
        // A panic under the lock leaves no half of anything: what is known is written after the kernel was told.
        blocking(move || learnt.lock().unwrap_or_else(PoisonError::into_inner).add(&addresses)).await
    }

    /// One name server after the other, until one knows.
    async fn ask(&self, question: &Question) -> Answer {
        let mut best = question.failure();
        for server in &self.name_servers {
            let server = SocketAddr::from((*server, DNS_PORT));
            let asked = timeout(SERVER_PATIENCE, self.ask_one(question, server)).await;
            match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(answer) if answer.is_definite() => return answer,
                Ok(answer) => best = answer,
                Err(error) => tracing::debug!(%server, %error, "asking a name server for a guest"),
            }
        }
        best
    }

    async fn ask_one(&self, question: &Question, server: SocketAddr) -> io::Result<Answer> {
        let (number, asked) = question.ask().map_err(io::Error::other)?;
        // A socket for each question: its port is as hard to guess as its number.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(server).await?;
        socket.send(&asked).await?;
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let length = socket.recv(&mut buffer).await?;
            match question.read_reply(&self.policy, number, &buffer[..length]) {
                Reply::Answer(answer) => return Ok(answer),
                Reply::Truncated => break,
                Reply::Foreign => {}
            }
        }
        let mut stream = TcpStream::connect(server).await?;
        send(&mut stream, &asked).await?;
        let answered = receive(&mut stream, MAX_MESSAGE).await?;
        match question.read_reply(&self.policy, number, &answered) {
            Reply::Answer(answer) => Ok(answer),
            Reply::Truncated | Reply::Foreign => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A message on a stream: its length before it.
async fn receive(stream: &mut TcpStream, longest: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > longest {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
