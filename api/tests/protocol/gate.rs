//! A schema that ticks and floods, and a server in front of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_graphql::{Object, Request, Response, Schema, Subscription};
use axum::{Router, extract::WebSocketUpgrade, http::HeaderMap, routing};
use futures_util::{Stream, StreamExt, stream, stream::BoxStream};
use secrecy::{ExposeSecret, SecretString};
use tokio::{net::TcpSocket, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use wrenn_api::ws::{self, Gate, Limits, Refused, SUBPROTOCOL, Standing};
use wrenn_schema::access::{Credentials, RequestId};

/// What the tests look at from behind.
#[derive(Default)]
pub struct Probe {
    /// Bytes that `flood` has produced.
    pub produced: AtomicU64,
    /// Subscriptions alive.
    pub alive: AtomicI64,
    pub written: AtomicI64,
    pub revoked: AtomicBool,
}

impl Probe {
    pub fn alive(&self) -> i64 {
        self.alive.load(Ordering::SeqCst)
    }

    pub fn produced(&self) -> u64 {
        self.produced.load(Ordering::SeqCst)
    }
}

struct Alive(Arc<Probe>);

impl Alive {
    fn new(probe: &Arc<Probe>) -> Self {
        probe.alive.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(probe))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Query;

#[Object]
impl Query {
    async fn hello(&self) -> &str {
        "world"
    }

    async fn fails(&self) -> async_graphql::Result<i32> {
        Err("it fails".into())
    }

    async fn panics(&self) -> i32 {
        boom()
    }
}

fn boom() -> i32 {
    panic!("it panics")
}

struct Mutation(Arc<Probe>);

#[Object]
impl Mutation {
    async fn write(&self, value: i64) -> i64 {
        self.0.written.store(value, Ordering::SeqCst);
        value
    }
}

struct Subscription_(Arc<Probe>);

#[Subscription(name = "Subscription")]
impl Subscription_ {
    /// 0, 1, 2, … at the given pace.
    async fn ticks(&self, every_ms: u64) -> impl Stream<Item = u64> + use<> {
        let alive = Alive::new(&self.0);
        let ticks = tokio::time::interval(Duration::from_millis(every_ms));
        stream::unfold((ticks, 0, alive), |(mut ticks, count, alive)| async move {
            ticks.tick().await;
            Some((count, (ticks, count + 1, alive)))
        })
    }

    /// Events of the given size, as fast as they are taken; each begins with its number.
    async fn flood(&self, bytes: usize) -> impl Stream<Item = String> + use<> {
        let alive = Alive::new(&self.0);
        stream::iter(0u64..).map(move |number| {
            alive.0.produced.fetch_add(bytes as u64, Ordering::SeqCst);
            format!("{number:0>8}{}", "x".repeat(bytes - 8))
        })
    }

    /// 0 … n−1, then the end.
    async fn count(&self, to: u64) -> impl Stream<Item = u64> + use<> {
        stream::iter(0..to)
    }

    /// Nothing, ever.
    async fn silence(&self) -> impl Stream<Item = i32> + use<> {
        let alive = Alive::new(&self.0);
        stream::pending().map(move |never: i32| {
            let _held = &alive;
            never
        })
    }

    async fn panics(&self) -> impl Stream<Item = i32> + use<> {
        stream::iter(0..2).map(|number| if number == 0 { number } else { boom() })
    }
}

type TestSchema = Schema<Query, Mutation, Subscription_>;

#[derive(Clone)]
struct TestGate {
    schema: TestSchema,
    probe: Arc<Probe>,
}

impl Gate for TestGate {
    type Access = ();

    fn admit(&self, given: Credentials) -> impl Future<Output = Result<(), Refused>> + Send + 'static {
        let key = given.api_key.or(given.bearer);
        async move {
            match key.as_ref().map(SecretString::expose_secret) {
                Some("good") => Ok(()),
                Some("hangs") => std::future::pending().await,
                Some("unlucky") => Err(Refused::Unavailable),
                _ => Err(Refused::Denied),
            }
        }
    }

    fn recheck(&self, (): ()) -> impl Future<Output = Standing> + Send + 'static {
        let revoked = self.probe.revoked.load(Ordering::SeqCst);
        std::future::ready(if revoked { Standing::Revoked } else { Standing::Valid })
    }

    fn execute(&self, (): (), _: RequestId, request: Request) -> BoxStream<'static, Response> {
        self.schema.execute_stream(request)
    }
}

/// A server of the protocol on a free port.
pub struct TestServer {
    pub address: SocketAddr,
    pub probe: Arc<Probe>,
    pub stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TestServer {
    pub fn start(limits: Limits) -> Self {
        let probe = Arc::new(Probe::default());
        let schema = Schema::new(Query, Mutation(Arc::clone(&probe)), Subscription_(Arc::clone(&probe)));
        let gate = TestGate { schema, probe: Arc::clone(&probe) };
        let stop = CancellationToken::new();
        let handler = {
            let stop = stop.clone();
            async move |headers: HeaderMap, upgrade: WebSocketUpgrade| {
                let upgrade = upgrade
                    .protocols([SUBPROTOCOL])
                    .max_message_size(limits.max_message)
                    .max_frame_size(limits.max_message);
                if upgrade.selected_protocol().is_none() {
                    return upgrade.on_upgrade(ws::refuse_subprotocol);
                }
                let api_key = headers.get("x-api-key").and_then(|key| key.to_str().ok());
                let offered = Credentials { api_key: api_key.map(SecretString::from), bearer: None };
                upgrade.on_upgrade(move |socket| ws::serve(socket, gate, offered, limits, stop))
            }
        };
        let router = Router::new().route("/graphql", routing::get(handler));
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(64 * 1024).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, probe, stop, serving }
    }
}
