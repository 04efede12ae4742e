//! A host agent whose capsules are played: the real contract over real mutual TLS, and nothing behind it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use secrecy::SecretString;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, broadcast, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::Connected},
};
use wrenn_entities::{CapsuleId, HostId};
use wrenn_proto::{
    CAUSE, FIELD,
    agent::v1::{
        self as agent, Capsule, CapsuleRef, CapsuleState,
        agent_server::{Agent, AgentServer},
        capsule_event::Event,
    },
    envd::v1::{self as envd, process_event},
};

use crate::world::World;

/// What the agent and the tests share.
#[derive(Default)]
struct Stage {
    capsules: HashMap<String, Capsule>,
    /// What the next call of this name answers instead.
    refusals: HashMap<&'static str, Status>,
    /// Calls of this name wait here.
    gates: HashMap<&'static str, Arc<Semaphore>>,
    calls: Vec<&'static str>,
    created: Vec<agent::CreateCapsuleRequest>,
}

pub struct PlayedAgent {
    pub host: HostId,
    pub token: SecretString,
    pub refresh_token: SecretString,
    stage: Arc<Mutex<Stage>>,
    events: broadcast::Sender<Capsule>,
    stop: CancellationToken,
}

impl Drop for PlayedAgent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn specs(memory_mib: i32) -> serde_json::Value {
    json!({
        "arch": "x86_64", "cpus": 4, "memoryMib": memory_mib, "memoryAvailableMib": memory_mib, "diskMib": 102_400,
        "diskAvailableMib": 102_400, "vmm": "played", "diskStore": "played", "agentVersion": "0",
    })
}

pub const REGISTER: &str = "mutation($input: RegisterHostInput!) {
    registerHost(input: $input) { hostId certificatePem caPem token tokenExpiresAt refreshToken }
}";

/// A certificate request, and the key that stays.
pub fn csr() -> (KeyPair, String) {
    let key = KeyPair::generate().expect("a key");
    let request = CertificateParams::default().serialize_request(&key).expect("a request");
    (key, request.pem().expect("as PEM"))
}

pub async fn registration_token(world: &World, name: &str) -> String {
    let made = world
        .execute(
            Some(&world.admin),
            "mutation($input: CreateHostInput!) { createHost(input: $input) { host { id status } token expiresAt } }",
            json!({"input": {"name": name}}),
        )
        .await;
    assert!(made.errors.is_empty(), "{:?}", made.errors);
    let made = made.data.into_json().expect("is JSON");
    assert_eq!(made["createHost"]["host"]["status"], "PENDING");
    made["createHost"]["token"].as_str().expect("a token").to_owned()
}

impl PlayedAgent {
    /// Goes the whole way: host created by the platform, registered with a token and a certificate request.
    pub async fn register(world: &World, name: &str, memory_mib: i32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address").to_string();
        let token = registration_token(world, name).await;
        let (key, csr_pem) = csr();
        let input = json!({"token": token, "csrPem": csr_pem, "address": address, "specs": specs(memory_mib)});
        let answer = world.execute(None, REGISTER, json!({"input": input})).await;
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        let answer = answer.data.into_json().expect("is JSON");
        let answer = &answer["registerHost"];
        let text = |name: &str| answer[name].as_str().expect(name).to_owned();
        let stage = Arc::new(Mutex::new(Stage::default()));
        let events = broadcast::channel(1024).0;
        let stop = CancellationToken::new();
        let tls = server_config(&text("certificatePem"), &text("caPem"), &key);
        let service = Service { stage: stage.clone(), events: events.clone() };
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), service, stop.clone()));
        Self {
            host: text("hostId").parse().expect("a host's id"),
            token: text("token").into(),
            refresh_token: text("refreshToken").into(),
            stage,
            events,
            stop,
        }
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine is gone, all connections with it.
    pub fn kill(&self) {
        self.stop.cancel();
    }

    pub fn refuse_next(&self, call: &'static str, status: Status) {
        self.stage().refusals.insert(call, status);
    }

    /// Calls of this name wait until the gate is opened by [`Semaphore::add_permits`].
    pub fn gate(&self, call: &'static str) -> Arc<Semaphore> {
        self.stage().gates.entry(call).or_insert_with(|| Arc::new(Semaphore::new(0))).clone()
    }

    pub fn calls(&self, call: &str) -> usize {
        self.stage().calls.iter().filter(|name| **name == call).count()
    }

    pub fn created(&self) -> Vec<agent::CreateCapsuleRequest> {
        self.stage().created.clone()
    }

    pub fn capsules(&self) -> Vec<Capsule> {
        self.stage().capsules.values().cloned().collect()
    }

    /// What the host has, without telling anybody.
    pub fn put(&self, id: CapsuleId, state: CapsuleState) {
        let capsule = Capsule { id: id.to_string(), state: state.into(), started_at_ns: 1, ..Default::default() };
        self.stage().capsules.insert(capsule.id.clone(), capsule);
    }

    pub fn forget(&self, id: CapsuleId) {
        self.stage().capsules.remove(&id.to_string());
    }

    /// Something happens to a capsule, and watchers are told.
    pub fn happen(&self, id: CapsuleId, state: CapsuleState, cause: Option<(&str, &str)>) {
        let mut stage = self.stage();
        let capsule = stage.capsules.get_mut(&id.to_string()).expect("the host has it");
        capsule.state = state.into();
        capsule.revision += 1;
        capsule.cause = cause.map(|(code, message)| envd::Cause { code: code.into(), message: message.into() });
        let told = capsule.clone();
        drop(stage);
        // That nobody watches at the moment is fine.
        let _ = self.events.send(told);
    }
}

fn server_config(certificate: &str, ca: &str, key: &KeyPair) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("a CA")).expect("is trusted");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .expect("verifies clients");
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .expect("the certificate fits the key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Breaks off when the agent is killed, as a connection to a dead process does.
struct Connection {
    inner: TlsStream<TcpStream>,
    killed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

fn killed() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, "killed")
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.killed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(killed()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, service: Service, stop: CancellationToken) {
    let (sender, incoming) = mpsc::channel::<std::io::Result<Connection>>(16);
    let stopped = stop.clone();
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
            let (tls, sender, stopped) = (tls.clone(), sender.clone(), stopped.clone());
            tokio::spawn(async move {
                if let Ok(inner) = tls.accept(stream).await {
                    let killed = Box::pin(stopped.cancelled_owned());
                    let _ = sender.send(Ok(Connection { inner, killed })).await;
                }
            });
        }
    });
    let serving = Server::builder()
        .initial_stream_window_size(wrenn_proto::STREAM_WINDOW)
        .add_service(AgentServer::new(service))
        .serve_with_incoming(ReceiverStream::new(incoming));
    stop.run_until_cancelled(serving).await;
}

#[derive(Clone)]
struct Service {
    stage: Arc<Mutex<Stage>>,
    events: broadcast::Sender<Capsule>,
}

impl Service {
    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(&self, call: &'static str) -> Result<(), Status> {
        let gate = {
            let mut stage = self.stage();
            stage.calls.push(call);
            if let Some(status) = stage.refusals.remove(call) {
                return Err(status);
            }
            stage.gates.get(call).cloned()
        };
        if let Some(gate) = gate {
            gate.acquire().await.expect("the gate stays").forget();
        }
        Ok(())
    }

    fn change(&self, id: &str, state: CapsuleState) -> Result<Response<Capsule>, Status> {
        let mut stage = self.stage();
        let capsule = stage.capsules.get_mut(id).ok_or_else(|| Status::not_found(format!("no capsule {id}")))?;
        if capsule.state() != state {
            capsule.set_state(state);
            capsule.revision += 1;
        }
        capsule.last_active_at_ns += 120_000_000_000;
        let capsule = capsule.clone();
        drop(stage);
        let _ = self.events.send(capsule.clone());
        Ok(Response::new(capsule))
    }

    fn running(&self, id: &str) -> Result<(), Status> {
        match self.stage().capsules.get(id).map(Capsule::state) {
            Some(CapsuleState::Running) => Ok(()),
            Some(_) => Err(Status::failed_precondition("the capsule is not running")),
            None => Err(Status::not_found(format!("no capsule {id}"))),
        }
    }
}

fn process() -> envd::Process {
    envd::Process {
        pid: 7,
        tag: "proc-0000abcd".into(),
        command: "sleep 1".into(),
        user: "root".into(),
        started_at_ns: 1,
        running: true,
        ..Default::default()
    }
}

fn output(stream: envd::OutputStream, sequence: u64, data: Vec<u8>) -> envd::ProcessEvent {
    let output = envd::ProcessOutput { stream: stream.into(), sequence, data: data.into() };
    envd::ProcessEvent { event: Some(process_event::Event::Output(output)) }
}

fn exited(exit_code: Option<i32>, cause: Option<envd::Cause>) -> envd::ProcessEvent {
    let exited = envd::ProcessExited { exit_code, signal: None, cause };
    envd::ProcessEvent { event: Some(process_event::Event::Exited(exited)) }
}

type Events = ReceiverStream<Result<envd::ProcessEvent, Status>>;

/// What the played guest does for a command line.
fn play(line: String, stdin: Vec<u8>) -> Events {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let started = envd::ProcessStarted { pid: 7, tag: "proc-0000abcd".into() };
        let started = envd::ProcessEvent { event: Some(process_event::Event::Started(started)) };
        if sender.send(Ok(started)).await.is_err() {
            return;
        }
        let mut events: Vec<Result<envd::ProcessEvent, Status>> = Vec::new();
        match line.as_str() {
            "cat" => {
                events.push(Ok(output(envd::OutputStream::Stdout, 0, stdin)));
                events.push(Ok(output(envd::OutputStream::Stderr, 0, b"done".to_vec())));
                events.push(Ok(exited(Some(3), None)));
            }
            "binary" => {
                events.push(Ok(output(envd::OutputStream::Stdout, 0, vec![0xff, 0x00])));
                events.push(Ok(exited(Some(0), None)));
            }
            "flood" => {
                for chunk in 0..320u64 {
                    events.push(Ok(output(envd::OutputStream::Stdout, chunk * 65_536, vec![b'x'; 65_536])));
                }
                events.push(Ok(exited(Some(0), None)));
            }
            "be paused" => {
                let mut status = Status::unavailable("the capsule was paused");
                status.metadata_mut().insert(CAUSE, "CAPSULE_PAUSED".parse().expect("a value"));
                events.push(Err(status));
            }
            "be lost" => {
                let cause = envd::Cause { code: "VMM_DIED".into(), message: "the VMM died".into() };
                events.push(Ok(exited(None, Some(cause))));
            }
            "hang" => sender.closed().await,
            _ => events.push(Ok(exited(Some(0), None))),
        }
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

#[tonic::async_trait]
impl Agent for Service {
    type WatchCapsulesStream = ReceiverStream<Result<agent::CapsuleEvent, Status>>;
    type ExecStream = Events;
    type FollowProcessStream = Events;

    async fn info(&self, _: Request<agent::InfoRequest>) -> Result<Response<agent::HostInfo>, Status> {
        Ok(Response::new(agent::HostInfo::default()))
    }

    async fn create_capsule(
        &self,
        request: Request<agent::CreateCapsuleRequest>,
    ) -> Result<Response<Capsule>, Status> {
        assert!(request.metadata().contains_key(wrenn_proto::REQUEST_ID), "the request's id comes along");
        self.enter("create").await?;
        let request = request.into_inner();
        let capsule = Capsule {
            id: request.capsule_id.clone(),
            team_id: request.team_id.clone(),
            template_id: request.template_id.clone(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disk_mib: request.disk_mib,
            timeout_sec: request.timeout_sec,
            revision: 1,
            started_at_ns: chrono::Utc::now().timestamp_nanos_opt().expect("a sane clock"),
            ..Default::default()
        };
        {
            let mut stage = self.stage();
            stage.capsules.entry(capsule.id.clone()).or_insert(capsule);
            stage.created.push(request.clone());
        }
        self.change(&request.capsule_id, CapsuleState::Running)
    }

    async fn get_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("get").await?;
        let id = request.into_inner().capsule_id;
        let found = self.stage().capsules.get(&id).cloned();
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("no capsule {id}")))
    }

    async fn list_capsules(
        &self,
        _: Request<agent::ListCapsulesRequest>,
    ) -> Result<Response<agent::ListCapsulesResponse>, Status> {
        self.enter("list").await?;
        let capsules = self.stage().capsules.values().cloned().collect();
        Ok(Response::new(agent::ListCapsulesResponse { capsules }))
    }

    async fn watch_capsules(
        &self,
        _: Request<agent::WatchCapsulesRequest>,
    ) -> Result<Response<Self::WatchCapsulesStream>, Status> {
        self.enter("watch").await?;
        let mut changes = self.events.subscribe();
        let present: Vec<Capsule> = self.stage().capsules.values().cloned().collect();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let event = |event| Ok(agent::CapsuleEvent { event: Some(event) });
            for capsule in present {
                if sender.send(event(Event::Capsule(capsule))).await.is_err() {
                    return;
                }
            }
            let mut last = sender.send(event(Event::Synced(agent::Synced {}))).await;
            while last.is_ok() {
                let changed = tokio::select! {
                    changed = changes.recv() => changed,
                    () = sender.closed() => return,
                };
                let Ok(capsule) = changed else { return };
                last = sender.send(event(Event::Capsule(capsule))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn pause_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("pause").await?;
        self.change(&request.into_inner().capsule_id, CapsuleState::Paused)
    }

    async fn resume_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("resume").await?;
        self.change(&request.into_inner().capsule_id, CapsuleState::Running)
    }

    async fn destroy_capsule(
        &self,
        request: Request<CapsuleRef>,
    ) -> Result<Response<agent::DestroyCapsuleResponse>, Status> {
        self.enter("destroy").await?;
        self.stage().capsules.remove(&request.into_inner().capsule_id);
        Ok(Response::new(agent::DestroyCapsuleResponse {}))
    }

    async fn ping_capsule(&self, request: Request<CapsuleRef>) -> Result<Response<Capsule>, Status> {
        self.enter("ping").await?;
        let id = request.into_inner().capsule_id;
        self.running(&id)?;
        self.change(&id, CapsuleState::Running)
    }

    async fn set_timeout(&self, request: Request<agent::SetTimeoutRequest>) -> Result<Response<Capsule>, Status> {
        self.enter("set_timeout").await?;
        let request = request.into_inner();
        let mut stage = self.stage();
        let capsule = stage.capsules.get_mut(&request.capsule_id).ok_or_else(|| Status::not_found("no capsule"))?;
        capsule.timeout_sec = request.timeout_sec;
        Ok(Response::new(capsule.clone()))
    }

    async fn exec(&self, request: Request<agent::StartProcessRequest>) -> Result<Response<Events>, Status> {
        self.enter("exec").await?;
        let request = request.into_inner();
        self.running(&request.capsule_id)?;
        let process = request.process.unwrap_or_default();
        if process.argv.first().is_some_and(|program| program == "/no/such/program") {
            let mut status = Status::not_found("there is no program /no/such/program");
            status.metadata_mut().insert(FIELD, "argv".parse().expect("a value"));
            return Err(status);
        }
        let line = process.argv.last().cloned().unwrap_or_default();
        Ok(Response::new(play(line, process.stdin.to_vec())))
    }

    async fn start_process(
        &self,
        request: Request<agent::StartProcessRequest>,
    ) -> Result<Response<envd::StartResponse>, Status> {
        self.enter("start").await?;
        self.running(&request.into_inner().capsule_id)?;
        Ok(Response::new(envd::StartResponse { process: Some(process()) }))
    }

    async fn follow_process(
        &self,
        request: Request<agent::FollowProcessRequest>,
    ) -> Result<Response<Events>, Status> {
        self.enter("follow").await?;
        let after = request.into_inner().process.and_then(|process| process.after).unwrap_or_default();
        let (sender, receiver) = mpsc::channel(4);
        let from = after.stdout.unwrap_or(0);
        tokio::spawn(async move {
            let gap = envd::ProcessGap { stream: envd::OutputStream::Stdout.into(), from, to: from + 5 };
            let gap = envd::ProcessEvent { event: Some(process_event::Event::Gap(gap)) };
            let events =
                [gap, output(envd::OutputStream::Stdout, from + 5, b"tail".to_vec()), exited(Some(0), None)];
            for event in events {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_processes(&self, request: Request<CapsuleRef>) -> Result<Response<envd::ListResponse>, Status> {
        self.enter("processes").await?;
        self.running(&request.into_inner().capsule_id)?;
        Ok(Response::new(envd::ListResponse { processes: vec![process()] }))
    }

    async fn signal_process(
        &self,
        request: Request<agent::SignalProcessRequest>,
    ) -> Result<Response<envd::SignalResponse>, Status> {
        self.enter("signal").await?;
        let signal = request.into_inner().process.unwrap_or_default();
        let selector = signal.selector.and_then(|selector| selector.by);
        if selector != Some(envd::selector::By::Pid(7)) {
            let mut status = Status::not_found("there is no such process");
            status.metadata_mut().insert(FIELD, "selector".parse().expect("a value"));
            return Err(status);
        }
        let process = envd::Process { running: false, signal: Some(signal.signal), ..process() };
        Ok(Response::new(envd::SignalResponse { process: Some(process) }))
    }

    async fn write_input(
        &self,
        request: Request<agent::WriteInputRequest>,
    ) -> Result<Response<envd::InputResponse>, Status> {
        self.enter("write").await?;
        let input = request.into_inner().input.unwrap_or_default();
        let next_sequence = input.sequence + input.data.len() as u64;
        Ok(Response::new(envd::InputResponse { next_sequence }))
    }

    async fn close_input(
        &self,
        _: Request<agent::CloseInputRequest>,
    ) -> Result<Response<envd::InputResponse>, Status> {
        self.enter("close").await?;
        Ok(Response::new(envd::InputResponse { next_sequence: 9 }))
    }
}

/// Waits until a call of this name has arrived so many times.
pub async fn arrived(agent: &PlayedAgent, call: &str, times: usize) {
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    while agent.calls(call) < times {
        assert!(std::time::Instant::now() < deadline, "{call} did not come {times} times");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
