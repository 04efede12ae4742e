use std::{collections::HashMap, pin::Pin, sync::Arc};

use async_graphql::{ErrorExtensionValues, Request, ServerError};
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use futures_util::{StreamExt, future::BoxFuture, stream::SplitStream};
use serde_json::{Map, Value};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Duration, Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;
use wrenn_schema::access::Credentials;

use super::{
    Close, Gate, Limits, Refused, Standing,
    liveness::{Liveness, Verdict},
    message::{ClientMessage, ServerMessage},
    operation,
    outbox::{LaneBounds, Outbox},
    state::{OperationKey, Protocol, Step},
    writer,
};
use crate::{credentials, request_id};

/// What the upgrade must ask for.
pub const SUBPROTOCOL: &str = "graphql-transport-ws";

/// Bytes set aside for a message that is not an event.
const SHORT: usize = 128;

/// How long the end of a socket is put off when the peer's answer to the close cannot be read any more.
const LINGER: Duration = Duration::from_secs(1);

/// How a connection ends.
enum Ending {
    /// The server closes it.
    Close(Close),
    /// The peer closed it; the answer is still due.
    Closed,
    /// The peer is gone or the socket failed.
    Gone(&'static str),
}

/// Serves one socket until it ends. `offered`: the credentials of the upgrade's headers, used when
/// `connection_init` brings none.
pub async fn serve<G: Gate>(
    socket: WebSocket,
    gate: G,
    offered: Credentials,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let (sink, stream) = socket.split();
    let outbox = Outbox::new(LaneBounds {
        bytes: limits.queue_bytes,
        frames: limits.queue_frames,
        window: limits.window,
    });
    let writer = AbortOnDropHandle::new(tokio::spawn(writer::run(sink, Arc::clone(&outbox))));
    let _counted = CountedSocket::new();
    let mut connection = Connection {
        protocol: Protocol::new(limits.max_operations),
        liveness: Liveness::new(limits.stall_timeout, Instant::now()),
        admission: None,
        access: None,
        revocation: None,
        operations: JoinSet::new(),
        running: HashMap::new(),
        offered: Some(offered),
        stream,
        writer,
        outbox,
        gate,
        limits,
        shutdown,
    };
    let ending = connection.run().await;
    connection.end(ending).await;
}

/// An open socket in the metrics.
struct CountedSocket;

impl CountedSocket {
    fn new() -> Self {
        metrics::gauge!("wrenn_ws_sockets").increment(1.0);
        Self
    }
}

impl Drop for CountedSocket {
    fn drop(&mut self) {
        metrics::gauge!("wrenn_ws_sockets").decrement(1.0);
    }
}

/// Tells a client that did not ask for the protocol so; browsers do not show the status of a failed upgrade.
pub async fn refuse_subprotocol(mut socket: WebSocket) {
    let close = Message::Close(Some((&Close::SubprotocolNotAcceptable).into()));
    if socket.send(close).await.is_ok() {
        // The close must be read before the socket goes, or a reset could overtake it.
        let _ = timeout(Limits::default().close_timeout, socket.recv()).await;
    }
}

struct Connection<G: Gate> {
    stream: SplitStream<WebSocket>,
    writer: AbortOnDropHandle<Result<(), axum::Error>>,
    outbox: Arc<Outbox>,
    gate: G,
    limits: Limits,
    shutdown: CancellationToken,
    protocol: Protocol,
    liveness: Liveness,
    offered: Option<Credentials>,
    admission: Option<BoxFuture<'static, Result<G::Access, Refused>>>,
    access: Option<G::Access>,
    /// Ends when the credentials no longer stand.
    revocation: Option<BoxFuture<'static, ()>>,
    operations: JoinSet<OperationKey>,
    running: HashMap<OperationKey, AbortHandle>,
}

impl<G: Gate> Connection<G> {
    async fn run(&mut self) -> Ending {
        let start = Instant::now();
        let init_deadline = start + self.limits.init_timeout;
        let mut keep_alive = interval_at(start + self.limits.ping_every, self.limits.ping_every);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                () = self.shutdown.cancelled() => Err(Ending::Close(Close::GoingAway)),
                message = self.stream.next() => self.receive(message),
                admitted = ready(&mut self.admission) => self.admitted(admitted),
                () = ready(&mut self.revocation) => Err(Ending::Close(Close::Forbidden)),
                () = sleep_until(init_deadline), if !self.protocol.is_acknowledged() => {
                    Err(Ending::Close(Close::InitTimeout))
                }
                Some(ended) = self.operations.join_next() => {
                    self.reap(ended);
                    Ok(())
                }
                now = keep_alive.tick() => self.keep_alive(now),
                _ = &mut self.writer => Err(Ending::Gone("cannot be written to")),
            };
            if let Err(ending) = step {
                return ending;
            }
        }
    }

    fn receive(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), Ending> {
        let message = match message {
            None => return Err(Ending::Gone("ended without a close")),
            Some(Err(error)) => return Err(read_failure(error)),
            Some(Ok(message)) => message,
        };
        self.liveness.heard(Instant::now());
        match message {
            Message::Text(text) => self.handle(&text),
            Message::Binary(_) => {
                Err(Ending::Close(Close::BadRequest("Invalid message: it is binary".to_owned())))
            }
            Message::Ping(_) => Ok(()),
            Message::Pong(payload) => {
                if let Ok(bytes) = payload.as_ref().try_into() {
                    self.outbox.confirm(u64::from_be_bytes(bytes));
                }
                Ok(())
            }
            Message::Close(_) => Err(Ending::Closed),
        }
    }

    fn handle(&mut self, text: &Utf8Bytes) -> Result<(), Ending> {
        for key in self.outbox.ended() {
            self.protocol.finished(key);
        }
        let step = ClientMessage::parse(text)
            .and_then(|message| self.protocol.receive(message))
            .map_err(Ending::Close)?;
        match step {
            Step::Nothing => Ok(()),
            Step::Admit(payload) => {
                self.admit(payload.as_ref());
                Ok(())
            }
            Step::Pong(payload) => {
                self.outbox.pong(ServerMessage::Pong { payload: payload.as_ref() }.to_text(SHORT));
                Ok(())
            }
            Step::Start { key, id, request } => {
                self.start(key, id, *request);
                Ok(())
            }
            Step::TooMany { id } => self.refuse(&id),
            Step::Cancel(key) => {
                self.cancel(key);
                Ok(())
            }
        }
    }

    fn admit(&mut self, payload: Option<&Map<String, Value>>) {
        let offered = self.offered.take().unwrap_or_default();
        let presented =
            payload.map(credentials::from_payload).filter(|presented| !credentials::is_empty(presented));
        self.admission = Some(Box::pin(self.gate.admit(presented.unwrap_or(offered))));
    }

    fn admitted(&mut self, admitted: Result<G::Access, Refused>) -> Result<(), Ending> {
        let access = admitted.map_err(|refused| {
            Ending::Close(match refused {
                Refused::Denied => Close::Forbidden,
                Refused::Unavailable => Close::TryAgainLater("The credentials cannot be checked now"),
            })
        })?;
        self.outbox.control(ServerMessage::ConnectionAck.to_text(SHORT));
        self.protocol.acknowledge();
        let every = self.limits.recheck_every;
        self.revocation = Some(Box::pin(until_revoked(self.gate.clone(), access.clone(), every)));
        self.access = Some(access);
        Ok(())
    }

    fn start(&mut self, key: OperationKey, id: String, request: Request) {
        let Some(access) = self.access.clone() else { return };
        let request_id = request_id::fresh();
        let span = tracing::info_span!("operation", request_id = request_id.0, id);
        let lane = self.outbox.open(key);
        let gate = self.gate.clone();
        let operation = async move {
            let responses = gate.execute(access, request_id.clone(), request);
            operation::run(id, request_id, responses, lane).await;
            key
        };
        metrics::counter!("wrenn_ws_operations_total").increment(1);
        self.running.insert(key, self.operations.spawn(operation.instrument(span)));
    }

    fn refuse(&mut self, id: &str) -> Result<(), Ending> {
        let limit = self.limits.max_operations;
        let mut extensions = ErrorExtensionValues::default();
        extensions.set("code", "RESOURCE_EXHAUSTED");
        let message = format!("at most {limit} operations may run on one connection at once");
        let mut error = ServerError::new(message, None);
        error.extensions = Some(extensions);
        let waiting = self.outbox.control(ServerMessage::Error { id, payload: &[error] }.to_text(SHORT));
        if waiting > limit {
            return Err(Ending::Close(Close::Policy("Refusals are not being read")));
        }
        Ok(())
    }

    /// At once, however full its lane is.
    fn cancel(&mut self, key: OperationKey) {
        if let Some(task) = self.running.remove(&key) {
            task.abort();
        }
        self.outbox.discard(key);
    }

    fn reap(&mut self, ended: Result<OperationKey, tokio::task::JoinError>) {
        match ended {
            Ok(key) => drop(self.running.remove(&key)),
            // Cancelled by the client: `cancel` has forgotten it already.
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(%error, "an operation's task failed"),
        }
    }

    fn keep_alive(&mut self, now: Instant) -> Result<(), Ending> {
        match self.liveness.tick(now, self.outbox.waiting_since()) {
            Verdict::Ping => {
                self.outbox.ping();
                Ok(())
            }
            Verdict::Dead => Err(Ending::Gone("does not answer")),
        }
    }

    /// Ends every operation, says farewell and lets go of the socket.
    async fn end(mut self, ending: Ending) {
        self.operations.shutdown().await;
        let close = match ending {
            Ending::Close(close) => close,
            Ending::Closed => {
                self.outbox.close(None);
                // Reading on is what sends the answer to the peer's close.
                let _ = timeout(self.limits.close_timeout, drain(&mut self.stream)).await;
                return;
            }
            Ending::Gone(how) => {
                tracing::debug!(how, "a socket is gone");
                return;
            }
        };
        tracing::debug!(code = close.code(), reason = close.reason(), "closing a socket");
        self.outbox.close(Some(close));
        let farewell = async {
            let (_, closed) = tokio::join!(&mut self.writer, drain(&mut self.stream));
            if !closed {
                tokio::time::sleep(LINGER).await;
            }
        };
        let _ = timeout(self.limits.close_timeout, farewell).await;
    }
}

/// Reads what the peer still sends, because bytes left unread would turn the end of the socket into a reset,
/// which can overtake the close. True when the peer has closed as well.
async fn drain(stream: &mut SplitStream<WebSocket>) -> bool {
    while let Some(Ok(message)) = stream.next().await {
        if matches!(message, Message::Close(_)) {
            return true;
        }
    }
    false
}

/// The future's value once it is there, forever pending when there is none. Safe to drop in between.
async fn ready<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(pending) = future else { return std::future::pending().await };
    let value = Pin::as_mut(pending).await;
    *future = None;
    value
}

async fn until_revoked<G: Gate>(gate: G, access: G::Access, every: Duration) {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match gate.recheck(access.clone()).await {
            Standing::Valid => {}
            Standing::Revoked => return,
            Standing::Unknown => tracing::warn!("the credentials of a socket cannot be checked now"),
        }
    }
}

fn read_failure(error: axum::Error) -> Ending {
    match error.into_inner().downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::Capacity(_)) => Ending::Close(Close::TooBig),
        Some(tungstenite::Error::Utf8(_)) => Ending::Close(Close::InvalidText),
        Some(tungstenite::Error::Protocol(_)) => Ending::Close(Close::ProtocolError),
        _ => Ending::Gone("failed"),
    }
}
