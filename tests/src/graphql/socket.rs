//! The `graphql-transport-ws` protocol, client side, small enough to be read at one go.
//!
//! Whoever holds a [`Socket`] reads it: nothing is read ahead in the background, so a test that stops
//! calling [`Socket::next`] is a client that stops reading.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{Client, Failure, GraphqlError};

/// What the server says about one operation.
#[derive(Debug)]
pub enum Frame {
    /// `data` of an event; an event with errors is a [`Frame::Error`].
    Next {
        id: String,
        data: Value,
    },
    Error {
        id: String,
        failure: Failure,
    },
    Complete {
        id: String,
    },
    /// The server closed the socket, with code and reason if it said them.
    Closed {
        code: u16,
        reason: String,
    },
}

/// One connection, any number of operations.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pongs: usize,
    pings: usize,
}

/// The longest that the server may leave unread or unanswered what it must take at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// Code reported for a connection that ended without a close frame (RFC 6455, 7.1.5).
const ABNORMAL_CLOSURE: u16 = 1006;

impl Socket {
    /// Connects and sends `connection_init` with `parameters`; does not wait for the answer.
    pub async fn open(url: &str, parameters: Value) -> Result<Self> {
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", "graphql-transport-ws".parse()?);
        // Small buffers: a client that stops reading is to be felt soon.
        let config = WebSocketConfig::default().read_buffer_size(64 * 1024);
        let (stream, _) = tokio_tungstenite::connect_async_with_config(request, Some(config), true)
            .await
            .with_context(|| format!("opening {url}"))?;
        let mut socket = Self { stream, pongs: 0, pings: 0 };
        socket.send(json!({ "type": "connection_init", "payload": parameters })).await?;
        Ok(socket)
    }

    /// Connects and waits for `connection_ack`.
    pub async fn connect(client: &Client) -> Result<Self> {
        let parameters = client.key().map_or(json!({}), |key| json!({ "apiKey": key }));
        let mut socket = Self::open(&client.websocket_url(), parameters).await?;
        match socket.admitted().await? {
            None => Ok(socket),
            Some(code) => bail!("connection_init was refused with {code}"),
        }
    }

    /// Waits for the answer to `connection_init`: nothing, or the code that the server closed with instead.
    pub async fn admitted(&mut self) -> Result<Option<u16>> {
        let answer = tokio::time::timeout(PATIENCE, self.message())
            .await
            .context("no answer to connection_init")??;
        match answer {
            Ok(message) if message["type"] == "connection_ack" => Ok(None),
            Ok(message) => bail!("connection_init was answered with {message}"),
            Err(Closing { code, .. }) => Ok(Some(code)),
        }
    }

    pub async fn start(&mut self, id: &str, query: &str, variables: Value) -> Result<()> {
        let payload = json!({ "query": query, "variables": variables });
        self.send(json!({ "type": "subscribe", "id": id, "payload": payload })).await
    }

    /// Ends an operation from the client's side.
    pub async fn complete(&mut self, id: &str) -> Result<()> {
        self.send(json!({ "type": "complete", "id": id })).await
    }

    pub async fn send(&mut self, message: Value) -> Result<()> {
        tokio::time::timeout(PATIENCE, self.stream.send(Message::text(message.to_string())))
            .await
            .context("the server does not read")?
            .context("sending on the WebSocket")
    }

    /// How many of the protocol's pings were answered so far.
    pub fn pongs(&self) -> usize {
        self.pongs
    }

    /// How many of the WebSocket's own pings have come so far.
    pub fn pings(&self) -> usize {
        self.pings
    }

    /// The next word about any operation, for as long as it takes.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.next_or_pong().await? {
                return Ok(frame);
            }
        }
    }

    /// The same, or nothing if one of the protocol's pings was answered before it.
    pub async fn next_or_pong(&mut self) -> Result<Option<Frame>> {
        loop {
            let mut message = match self.message().await? {
                Ok(message) => message,
                Err(Closing { code, reason }) => return Ok(Some(Frame::Closed { code, reason })),
            };
            let id = message["id"].as_str().unwrap_or_default().to_owned();
            let payload = message["payload"].take();
            match message["type"].as_str() {
                Some("next") => return next_frame(id, payload).map(Some),
                Some("error") => return Ok(Some(Frame::Error { id, failure: failure(payload)? })),
                Some("complete") => return Ok(Some(Frame::Complete { id })),
                Some("ping") => self.send(json!({ "type": "pong" })).await?,
                Some("pong") => {
                    self.pongs += 1;
                    return Ok(None);
                }
                Some("connection_ack") => {}
                _ => bail!("a message no client expects: {message}"),
            }
        }
    }

    async fn message(&mut self) -> Result<Result<Value, Closing>> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    return Ok(Ok(serde_json::from_str(&text).context("a message that is not JSON")?));
                }
                Some(Ok(Message::Close(frame))) => return Ok(Err(Closing::from(frame))),
                // The library answers.
                Some(Ok(Message::Ping(_))) => self.pings += 1,
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    return Ok(Err(Closing { code: ABNORMAL_CLOSURE, reason: error.to_string() }));
                }
                None => return Ok(Err(Closing { code: ABNORMAL_CLOSURE, reason: "end of stream".into() })),
            }
        }
    }
}

struct Closing {
    code: u16,
    reason: String,
}

impl From<Option<CloseFrame>> for Closing {
    fn from(frame: Option<CloseFrame>) -> Self {
        frame.map_or(Self { code: 1005, reason: String::new() }, |frame| Self {
            code: frame.code.into(),
            reason: frame.reason.to_string(),
        })
    }
}

fn next_frame(id: String, mut payload: Value) -> Result<Frame> {
    match payload.get_mut("errors").map(Value::take) {
        Some(errors) if !errors.is_null() => Ok(Frame::Error { id, failure: failure(errors)? }),
        _ => Ok(Frame::Next { id, data: payload["data"].take() }),
    }
}

fn failure(errors: Value) -> Result<Failure> {
    let errors: Vec<GraphqlError> = serde_json::from_value(errors).context("the shape of errors")?;
    ensure!(!errors.is_empty(), "an empty list of errors");
    Ok(Failure(errors))
}

/// One operation on a connection of its own.
pub struct Subscription {
    socket: Socket,
}

impl Client {
    pub async fn subscribe(&self, query: &str, variables: Value) -> Result<Subscription> {
        let mut socket = Socket::connect(self).await?;
        socket.start("1", query, variables).await?;
        Ok(Subscription { socket })
    }
}

impl Subscription {
    /// The next event's data; nothing once the server has completed the operation; an error for what the
    /// server called one (a [`Failure`]) and for a connection that ended without a word.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        match self.socket.next().await? {
            Frame::Next { data, .. } => Ok(Some(data)),
            Frame::Complete { .. } => Ok(None),
            Frame::Error { failure, .. } => Err(failure.into()),
            Frame::Closed { code, reason } => bail!("the connection was closed: {code} {reason}"),
        }
    }

    /// The same with a deadline.
    pub async fn next_within(&mut self, deadline: Duration) -> Result<Option<Value>> {
        tokio::time::timeout(deadline, self.next())
            .await
            .with_context(|| format!("no event within {deadline:?}"))?
    }
}
