//! A host agent whose capsules are played: the real contract over real mutual TLS, and nothing behind it.

pub mod files;
mod gauges;
mod guest;
pub mod service;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use secrecy::SecretString;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, broadcast, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use wrenn_entities::{CapsuleId, HostId, TemplateId};
use wrenn_proto::{
    agent::v1::{self as agent, Capsule, CapsuleState},
    envd::v1::{self as envd, file_event, port_event},
};

use self::{
    files::Files,
    service::Service,
    wire::{serve, server_config},
};

/// How long a test waits for what has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the agent and the tests share.
#[derive(Default)]
pub struct Stage {
    capsules: HashMap<String, Capsule>,
    /// What the next call of this name answers instead.
    refusals: HashMap<&'static str, Status>,
    /// Calls of this name wait here.
    gates: HashMap<&'static str, Arc<Semaphore>>,
    calls: Vec<&'static str>,
    created: Vec<agent::CreateCapsuleRequest>,
    forked: Vec<agent::ForkCapsuleRequest>,
    started: Vec<envd::StartRequest>,
    /// Snapshots that the host keeps.
    templates: BTreeMap<String, agent::SnapshotCapsuleResponse>,
    files: Files,
    ports: Vec<envd::Port>,
    /// Of the one terminal there is.
    size: Option<envd::PtySize>,
}

/// How an agent and whoever installs it reach the control plane.
pub trait ControlPlane {
    /// Carries out what has to succeed: with the platform's key or, without it, with none.
    fn carry_out(
        &self,
        as_platform: bool,
        query: &str,
        variables: serde_json::Value,
    ) -> impl Future<Output = serde_json::Value>;
}

pub struct PlayedAgent {
    pub host: HostId,
    pub token: SecretString,
    pub refresh_token: SecretString,
    stage: Arc<Mutex<Stage>>,
    events: broadcast::Sender<Capsule>,
    port_events: broadcast::Sender<port_event::Event>,
    file_events: broadcast::Sender<file_event::Event>,
    http: tokio::sync::Mutex<mpsc::Receiver<TlsStream<TcpStream>>>,
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

pub async fn registration_token(control_plane: &impl ControlPlane, name: &str) -> String {
    let create = "mutation($input: CreateHostInput!) { createHost(input: $input) { host { id status } token expiresAt } }";
    let made = control_plane.carry_out(true, create, json!({"input": {"name": name}})).await;
    assert_eq!(made["createHost"]["host"]["status"], "PENDING");
    made["createHost"]["token"].as_str().expect("a token").to_owned()
}

impl PlayedAgent {
    /// Goes the whole way: host created by the platform, registered with a token and a certificate request.
    pub async fn register(control_plane: &impl ControlPlane, name: &str, memory_mib: i32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address").to_string();
        let token = registration_token(control_plane, name).await;
        let (key, csr_pem) = csr();
        let input =
            json!({"token": token, "csrPem": csr_pem, "address": address, "specs": specs(memory_mib)});
        let answer = control_plane.carry_out(false, REGISTER, json!({"input": input})).await;
        let answer = &answer["registerHost"];
        let text = |name: &str| answer[name].as_str().expect(name).to_owned();
        let stage = Arc::new(Mutex::new(Stage::default()));
        let events = broadcast::channel(1024).0;
        let (port_events, file_events) = (broadcast::channel(16).0, broadcast::channel(16).0);
        let stop = CancellationToken::new();
        let tls = server_config(&text("certificatePem"), &text("caPem"), &key);
        let service = Service {
            stage: stage.clone(),
            events: events.clone(),
            port_events: port_events.clone(),
            file_events: file_events.clone(),
        };
        let (http_sender, http) = mpsc::channel(16);
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(serve(listener, acceptor, service, http_sender, stop.clone()));
        Self {
            host: text("hostId").parse().expect("a host's id"),
            token: text("token").into(),
            refresh_token: text("refreshToken").into(),
            stage,
            events,
            port_events,
            file_events,
            http: http.into(),
            stop,
        }
    }

    /// The next connection that the control plane makes for HTTP/1.1 into capsules.
    pub async fn http_connection(&self) -> Option<TlsStream<TcpStream>> {
        self.http.lock().await.recv().await
    }

    /// How the host thinks a capsule is.
    pub fn state_of(&self, id: &str) -> Option<CapsuleState> {
        self.stage().capsules.get(id).map(Capsule::state)
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine is gone, all connections with it.
    pub fn kill(&self) {
        self.stop.cancel();
    }

    /// Until [`Self::kill`]: whatever plays a part of the machine ends with it.
    pub async fn killed(&self) {
        self.stop.cancelled().await;
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

    pub fn forked(&self) -> Vec<agent::ForkCapsuleRequest> {
        self.stage().forked.clone()
    }

    pub fn started(&self) -> Vec<envd::StartRequest> {
        self.stage().started.clone()
    }

    /// Ids of the snapshots that the host keeps.
    pub fn templates(&self) -> Vec<String> {
        self.stage().templates.keys().cloned().collect()
    }

    /// A snapshot that the host has made without anybody learning of it.
    pub fn put_template(&self, id: TemplateId) {
        self.stage().templates.insert(id.to_string(), agent::SnapshotCapsuleResponse::default());
    }

    pub fn with_files<T>(&self, act: impl FnOnce(&mut Files) -> T) -> T {
        act(&mut self.stage().files)
    }

    pub fn tell_of_files(&self, event: file_event::Event) {
        // That nobody watches at the moment is fine, here and below.
        let _ = self.file_events.send(event);
    }

    pub fn open_port(&self, number: u32) {
        let port = gauges::port(number);
        self.stage().ports.push(port.clone());
        let _ = self.port_events.send(port_event::Event::Opened(port));
    }

    pub fn close_port(&self, number: u32) {
        self.stage().ports.retain(|port| port.number != number);
        let _ = self.port_events.send(port_event::Event::Closed(number));
    }

    pub fn capsules(&self) -> Vec<Capsule> {
        self.stage().capsules.values().cloned().collect()
    }

    /// What the host has, without telling anybody.
    pub fn put(&self, id: CapsuleId, state: CapsuleState) {
        let capsule =
            Capsule { id: id.to_string(), state: state.into(), started_at_ns: 1, ..Default::default() };
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
        capsule.cause =
            cause.map(|(code, message)| envd::Cause { code: code.into(), message: message.into() });
        let told = capsule.clone();
        drop(stage);
        // That nobody watches at the moment is fine.
        let _ = self.events.send(told);
    }
}
/// Waits until a call of this name has arrived so many times.
pub async fn arrived(agent: &PlayedAgent, call: &str, times: usize) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while agent.calls(call) < times {
        assert!(std::time::Instant::now() < deadline, "{call} did not come {times} times");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
