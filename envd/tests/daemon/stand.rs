//! A daemon to test, clients for it, and a way to read its streams.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::codegen::http::Uri;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use wrenn_envd::daemon::{Config, Daemon};
use wrenn_envd::disk::GrowError;
use wrenn_envd::system::System;
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::files_client::FilesClient;
use wrenn_proto::envd::v1::guest_client::GuestClient;
use wrenn_proto::envd::v1::ports_client::PortsClient;
use wrenn_proto::envd::v1::process_event::Event;
use wrenn_proto::envd::v1::processes_client::ProcessesClient;

/// No step of any test takes longer on a machine that works.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const TOKEN: &[u8] = b"a token of thirty-two bytes, yes";

/// Remembers what it was told instead of doing it.
#[derive(Debug)]
pub struct FakeSystem {
    pub etc: tempfile::TempDir,
    pub told: Mutex<Vec<String>>,
    pub clock_ns: Mutex<i64>,
    pub reseed_fails: bool,
}

impl FakeSystem {
    pub fn new() -> Self {
        let etc = tempfile::tempdir().expect("a temporary directory");
        Self { etc, told: Mutex::default(), clock_ns: Mutex::new(0), reseed_fails: false }
    }

    fn tell(&self, what: impl Into<String>) {
        self.told.lock().expect("told").push(what.into());
    }

    pub fn told(&self) -> Vec<String> {
        self.told.lock().expect("told").clone()
    }

    pub fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.etc.path().join(name)).ok()
    }
}

impl System for FakeSystem {
    fn add_entropy(&self, bytes: &[u8]) -> io::Result<()> {
        self.tell(format!("entropy {}", bytes.len()));
        Ok(())
    }

    fn reseed(&self) -> io::Result<()> {
        self.tell("reseed");
        if self.reseed_fails { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
    }

    fn wall_clock_ns(&self) -> io::Result<i64> {
        Ok(*self.clock_ns.lock().expect("clock"))
    }

    fn set_wall_clock_ns(&self, ns: i64) -> io::Result<()> {
        self.tell("clock");
        *self.clock_ns.lock().expect("clock") = ns;
        Ok(())
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        self.tell(format!("hostname {name}"));
        Ok(())
    }

    fn end_connections(&self) -> io::Result<()> {
        self.tell("connections");
        Ok(())
    }

    fn sync(&self) {
        self.tell("sync");
    }

    fn grow_root(&self) -> Result<(), GrowError> {
        self.tell("grow");
        Ok(())
    }

    fn etc(&self) -> &Path {
        self.etc.path()
    }
}

/// A daemon that serves on a port of its own until the test's runtime ends.
pub struct Stand {
    pub address: SocketAddr,
    pub system: Arc<FakeSystem>,
}

impl Stand {
    pub async fn start() -> Self {
        Self::start_with(FakeSystem::new(), Duration::from_secs(30), Ipv4Addr::LOCALHOST.into()).await
    }

    pub async fn start_with(system: FakeSystem, reconnect_grace: Duration, peer: IpAddr) -> Self {
        Self::start_as(system, Config { reconnect_grace, peer, ..Self::usual() }).await
    }

    /// Where a terminal that nobody uses is hung up so soon, if it is to be at all.
    pub async fn start_with_idle(terminal_idle: Duration) -> Self {
        Self::start_as(FakeSystem::new(), Config { terminal_idle, ..Self::usual() }).await
    }

    fn usual() -> Config {
        Config {
            peer: Ipv4Addr::LOCALHOST.into(),
            reconnect_grace: Duration::from_secs(30),
            terminal_idle: Duration::from_secs(120),
            expendable_children: false,
            accounts: PathBuf::from("/etc"),
        }
    }

    async fn start_as(system: FakeSystem, config: Config) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let system = Arc::new(system);
        tokio::spawn(Daemon::new(config, Arc::clone(&system) as Arc<dyn System>).serve(listener));
        Self { address, system }
    }

    /// A client of a daemon that has its token.
    pub async fn client(&self) -> Client {
        let mut client = self.stranger().await;
        client.guest.configure(with_token(configuration())).await.expect("configure");
        client
    }

    /// A connection and nothing more.
    pub async fn stranger(&self) -> Client {
        Client::connect(self.address)
    }
}

/// The services over one connection.
#[derive(Clone)]
pub struct Client {
    pub guest: GuestClient<Channel>,
    pub files: FilesClient<Channel>,
    pub ports: PortsClient<Channel>,
    pub processes: ProcessesClient<Channel>,
    pub address: SocketAddr,
    line: Arc<Mutex<Option<std::os::fd::OwnedFd>>>,
}

impl Client {
    /// Connects with the first call.
    pub fn connect(address: SocketAddr) -> Self {
        let line = Arc::new(Mutex::new(None));
        let connector = tower::service_fn({
            let line = Arc::clone(&line);
            move |_: Uri| {
                let line = Arc::clone(&line);
                async move {
                    let stream = TcpStream::connect(address).await?;
                    *line.lock().expect("line") =
                        Some(std::os::fd::AsFd::as_fd(&stream).try_clone_to_owned()?);
                    Ok::<_, io::Error>(TokioIo::new(stream))
                }
            }
        });
        let channel = Endpoint::from_static("http://envd")
            .initial_stream_window_size(wrenn_proto::STREAM_WINDOW)
            .initial_connection_window_size(wrenn_proto::CONNECTION_WINDOW)
            // Until an answer begins.
            .timeout(DEADLINE)
            .connect_with_connector_lazy(connector);
        Client {
            guest: GuestClient::new(channel.clone()),
            files: FilesClient::new(channel.clone()),
            ports: PortsClient::new(channel.clone()),
            processes: ProcessesClient::new(channel),
            address,
            line,
        }
    }
    /// The connection ends as if its host had died: nothing more is read, nothing said.
    pub fn cut(self) {
        use std::os::fd::AsRawFd;
        let line = self.line.lock().expect("line").take().expect("connected");
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&line, nix::sys::socket::sockopt::Linger, &at_once).expect("linger");
        nix::sys::socket::shutdown(line.as_raw_fd(), nix::sys::socket::Shutdown::Both).expect("shutdown");
    }

    pub async fn start(&mut self, request: pb::StartRequest) -> Result<pb::Process, Status> {
        let answer = self.processes.start(with_token(request)).await?;
        Ok(answer.into_inner().process.expect("a process"))
    }

    pub async fn exec(&mut self, request: pb::StartRequest) -> Result<Reader, Status> {
        let events = self.processes.exec(with_token(request)).await?.into_inner();
        Ok(Reader { events })
    }

    pub async fn follow(&mut self, pid: u32, after: pb::OutputCursor) -> Result<Reader, Status> {
        let request = pb::FollowRequest { selector: by_pid(pid), after: Some(after) };
        let events = self.processes.follow(with_token(request)).await?.into_inner();
        Ok(Reader { events })
    }

    pub async fn signal(&mut self, pid: u32, signal: &str) -> Result<pb::Process, Status> {
        let request = pb::SignalRequest { selector: by_pid(pid), signal: signal.into() };
        let answer = self.processes.signal(with_token(request)).await?;
        Ok(answer.into_inner().process.expect("a process"))
    }

    pub async fn write(&mut self, pid: u32, sequence: u64, data: &[u8]) -> Result<u64, Status> {
        let data = bytes::Bytes::copy_from_slice(data);
        let request = pb::WriteInputRequest { selector: by_pid(pid), sequence, data };
        Ok(self.processes.write_input(with_token(request)).await?.into_inner().next_sequence)
    }

    pub async fn close(&mut self, pid: u32) -> Result<u64, Status> {
        let request = pb::CloseInputRequest { selector: by_pid(pid) };
        Ok(self.processes.close_input(with_token(request)).await?.into_inner().next_sequence)
    }

    pub async fn list(&mut self) -> Vec<pb::Process> {
        let answer = self.processes.list(with_token(pb::ListRequest {})).await.expect("list");
        answer.into_inner().processes
    }

    /// Waits until the process has exited.
    pub async fn exited(&mut self, pid: u32) -> pb::Process {
        until("the process exits", async || {
            self.list().await.into_iter().find(|it| it.pid == pid && !it.running)
        })
        .await
    }
}

/// A stream of events.
pub struct Reader {
    pub events: Streaming<pb::ProcessEvent>,
}

/// What a stream said in all.
#[derive(Debug, Default)]
pub struct Told {
    pub started: Option<pb::ProcessStarted>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub gaps: Vec<pb::ProcessGap>,
    pub exited: Option<pb::ProcessExited>,
}

impl Reader {
    /// The next event; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Event>, Status> {
        let message = timeout(DEADLINE, self.events.message()).await.expect("an event in time")?;
        Ok(message.map(|it| it.event.expect("an event")))
    }

    pub async fn started(&mut self) -> pb::ProcessStarted {
        match self.next().await.expect("event") {
            Some(Event::Started(started)) => started,
            other => panic!("expected the start, got {other:?}"),
        }
    }

    /// Everything to the end of the stream, whose grammar is checked on the way.
    pub async fn rest(&mut self) -> Told {
        let mut told = Told::default();
        while let Some(event) = self.next().await.expect("event") {
            assert!(told.exited.is_none(), "nothing follows the exit");
            match event {
                Event::Started(started) => {
                    assert!(told.stdout.is_empty() && told.stderr.is_empty() && told.pty.is_empty());
                    told.started = Some(started);
                }
                Event::Output(output) => {
                    assert!(!output.data.is_empty() && output.data.len() <= 64 * 1024);
                    match output.stream() {
                        pb::OutputStream::Stdout => told.stdout.extend_from_slice(&output.data),
                        pb::OutputStream::Stderr => told.stderr.extend_from_slice(&output.data),
                        pb::OutputStream::Pty => told.pty.extend_from_slice(&output.data),
                        pb::OutputStream::Unspecified => panic!("a stream without a name"),
                    }
                }
                Event::Gap(gap) => told.gaps.push(gap),
                Event::Exited(exited) => told.exited = Some(exited),
            }
        }
        told
    }
}

impl Told {
    pub fn code(&self) -> Option<i32> {
        self.exited.as_ref().and_then(|it| it.exit_code)
    }

    pub fn signal(&self) -> Option<&str> {
        self.exited.as_ref().and_then(|it| it.signal.as_deref())
    }
}

/// Waits for a condition, asking every few milliseconds.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let found = timeout(DEADLINE, async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}

pub fn with_token<T>(message: T) -> Request<T> {
    with_this_token(TOKEN, message)
}

pub fn with_this_token<T>(token: &[u8], message: T) -> Request<T> {
    let mut request = Request::new(message);
    let hex: String = token.iter().map(|it| format!("{it:02x}")).collect();
    let value: AsciiMetadataValue = hex.parse().expect("ascii");
    request.metadata_mut().insert(wrenn_proto::TOKEN, value);
    request
}

pub fn configuration() -> pb::ConfigureRequest {
    pb::ConfigureRequest { token: bytes::Bytes::from_static(TOKEN), ..Default::default() }
}

pub fn by_pid(pid: u32) -> Option<pb::Selector> {
    Some(pb::Selector { by: Some(pb::selector::By::Pid(pid)) })
}

/// A shell line as the host sends it.
pub fn shell(line: &str) -> pb::StartRequest {
    pb::StartRequest { argv: vec!["/bin/sh".into(), "-c".into(), line.into()], ..Default::default() }
}

pub fn from_stdout(offset: u64) -> pb::OutputCursor {
    pb::OutputCursor { stdout: Some(offset), ..Default::default() }
}

pub fn field(status: &Status) -> Option<&str> {
    status.metadata().get(wrenn_proto::FIELD).and_then(|it| it.to_str().ok())
}

/// Whether a process is there and not only waits to be reaped by its parent.
pub fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// Lines of seven digits, counted up from 0: every byte is known by its offset.
pub struct Counted;

impl Counted {
    pub const LINE: u64 = 8;

    /// The shell line that writes `lines` of them.
    pub fn line(lines: u64) -> String {
        assert!((1_000_001..=10_000_000).contains(&lines), "seven digits");
        format!("exec seq -w 0 {}", lines - 1)
    }

    /// # Panics
    /// The bytes are not those that belong at `offset`.
    pub fn check(offset: u64, data: &[u8]) {
        let first = offset / Self::LINE;
        let last = (offset + data.len() as u64) / Self::LINE;
        let mut expected = String::with_capacity(data.len() + 16);
        for number in first..=last {
            use std::fmt::Write;
            writeln!(expected, "{number:07}").expect("a string");
        }
        let skip = (offset % Self::LINE) as usize;
        assert!(expected.as_bytes()[skip..].starts_with(data), "wrong bytes at offset {offset}");
    }
}
