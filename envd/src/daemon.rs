//! The server: who may connect, how a call finds its service.

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use wrenn_proto::envd::v1::files_server::FilesServer;
use wrenn_proto::envd::v1::guest_server::GuestServer;
use wrenn_proto::envd::v1::ports_server::PortsServer;
use wrenn_proto::envd::v1::processes_server::ProcessesServer;

use crate::access::Access;
use crate::connections::{Carries, ConnectionId, Connections};
use crate::content::{self, Content};
use crate::files::FilesService;
use crate::files::actor::Workers;
use crate::files::watch::Watches;
use crate::guest::{Configuration, GuestService};
use crate::ports::{Ports, PortsService};
use crate::process::Rules;
use crate::processes::ProcessesService;
use crate::spawn;
use crate::system::System;
use crate::table::Table;

/// Calls that may be under way on one connection: the host has a single one for a capsule, and every
/// followed process is a call.
const CALLS: u32 = 4096;
/// Calls that may be given up before they are looked at. At one more HTTP/2 ends the connection, by default at the 21st,
/// and with it all that others follow.
const GIVEN_UP_EARLY: usize = 4096;
/// Bytes of one call's answer that wait inside envd for the peer's window.
const SEND_BUFFER: usize = 64 * 1024;
/// Bytes of headers accepted with one call.
const HEADERS: u32 = 16 * 1024;
/// How long accepting pauses when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be set from outside.
#[derive(Debug, Clone)]
pub struct Config {
    /// The only address that connections are accepted from.
    pub peer: IpAddr,
    /// How long a process is held back for a reader that went away.
    pub reconnect_grace: Duration,
    /// After how long a terminal that nobody uses is hung up, where that was asked for.
    pub terminal_idle: Duration,
    /// envd is exempt from the out-of-memory killer and its processes must not be.
    pub expendable_children: bool,
    /// Where `passwd` and `group` lie.
    pub accounts: PathBuf,
}

/// The guest daemon, ready to serve.
#[derive(Debug, Clone)]
pub struct Daemon {
    peer: IpAddr,
    connections: Arc<Connections>,
    guest: GuestServer<GuestService>,
    processes: ProcessesServer<ProcessesService>,
    files: FilesServer<FilesService>,
    content: Content,
    open_ports: Arc<Ports>,
    ports: PortsServer<PortsService>,
}

impl Daemon {
    /// A daemon without a token, a configuration or a process.
    pub fn new(config: Config, system: Arc<dyn System>) -> Self {
        // Asked for now so that the first process need not wait for it.
        let _ = spawn::ignored_signals();
        let access = Arc::new(Access::default());
        let connections = Arc::new(Connections::default());
        let configuration = Arc::new(Configuration::default());
        let rules = Rules {
            reconnect_grace: config.reconnect_grace,
            terminal_idle: config.terminal_idle,
            expendable: config.expendable_children,
            budget: Arc::default(),
        };
        let files = FilesService {
            workers: Workers::new(config.accounts.clone()),
            watches: Watches::default(),
            configuration: Arc::clone(&configuration),
        };
        let open_ports = Arc::new(Ports::default());
        let table = Arc::new(Table::new(rules, config.accounts));
        let guest = GuestService {
            system,
            access: Arc::clone(&access),
            configuration: Arc::clone(&configuration),
            connections: Arc::clone(&connections),
            ports: Arc::clone(&open_ports),
        };
        Self {
            peer: config.peer,
            connections,
            guest: GuestServer::new(guest),
            processes: ProcessesServer::new(ProcessesService { table, configuration }),
            content: Content { access: Arc::clone(&access), files: files.clone() },
            files: FilesServer::new(files),
            ports: PortsServer::new(PortsService { ports: Arc::clone(&open_ports) }),
            open_ports,
        }
    }

    /// Serves for ever. Nothing that comes in ends it.
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let daemon = Arc::new(self);
        let own = listener.local_addr().map_or(wrenn_proto::ENVD_PORT, |it| it.port());
        tokio::spawn(Arc::clone(&daemon.open_ports).run(own));
        loop {
            match listener.accept().await {
                Ok((stream, from)) if from.ip() == daemon.peer => {
                    tokio::spawn(Arc::clone(&daemon).serve_connection(stream));
                }
                // Closed without an answer.
                Ok(_) => {}
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream) {
        let mut first = [0];
        // One that ends without a word is over.
        let Ok(1) = stream.peek(&mut first).await else { return };
        let carries = if content::begins_with(first[0]) { Carries::Content } else { Carries::Calls };
        let Ok(registration) = self.connections.register(&stream, carries) else { return };
        match carries {
            Carries::Calls => self.serve_calls(stream, registration.id).await,
            Carries::Content => self.content.serve(stream).await,
        }
        drop(registration);
    }

    async fn serve_calls(self: Arc<Self>, stream: TcpStream, id: ConnectionId) {
        let calls = service_fn(move |request| Arc::clone(&self).call(id, request));
        // The peer learns of an error on its own side; here it only means that the connection is over.
        let _ = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(wrenn_proto::CONTENT_WINDOW)
            .max_frame_size(wrenn_proto::FRAME)
            .initial_connection_window_size(wrenn_proto::CONNECTION_WINDOW)
            .max_concurrent_streams(CALLS)
            .max_pending_accept_reset_streams(GIVEN_UP_EARLY)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADERS)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), calls)
            .await;
    }

    async fn call(
        self: Arc<Self>,
        connection: ConnectionId,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        if let Err(refused) = self.content.access.admit(path, request.headers()) {
            return Ok(refused.into_http());
        }
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match service {
            "wrenn.envd.v1.Processes" => self.processes.clone().call(request).await,
            "wrenn.envd.v1.Files" => self.files.clone().call(request).await,
            "wrenn.envd.v1.Ports" => self.ports.clone().call(request).await,
            "wrenn.envd.v1.Guest" => {
                request.extensions_mut().insert(connection);
                self.guest.clone().call(request).await
            }
            _ => Ok(Status::unimplemented("no such service").into_http()),
        }
    }
}
