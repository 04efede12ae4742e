//! A client that says exactly what a test wants said.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use crate::DEADLINE;

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
}

impl Client {
    /// Upgrades and says nothing. The receive buffer is small, so that a client that stops reading is felt.
    pub async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, &[("sec-websocket-protocol", "graphql-transport-ws")]).await
    }

    pub async fn open_with(address: SocketAddr, headers: &[(&'static str, &'static str)]) -> Self {
        Self::open_wide(address, headers, 64 * 1024).await
    }

    /// With so much room in the kernel for what is not read.
    pub async fn open_wide(
        address: SocketAddr,
        headers: &[(&'static str, &'static str)],
        receive_buffer: u32,
    ) -> Self {
        let tcp = TcpSocket::new_v4().unwrap();
        tcp.set_recv_buffer_size(receive_buffer).unwrap();
        let tcp = tcp.connect(address).await.unwrap();
        let mut request = format!("ws://{address}/graphql").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, _) = client_async(request, tcp).await.unwrap();
        Self { socket }
    }

    /// Upgrades and is acknowledged.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::open(address).await.acknowledged().await
    }

    pub async fn acknowledged(mut self) -> Self {
        self.init(json!({ "apiKey": "good" })).await;
        assert_eq!(self.receive().await, json!({ "type": "connection_ack" }));
        self
    }

    /// Bytes as they are, past all rules of WebSocket.
    pub async fn send_raw(&mut self, bytes: &[u8]) {
        timeout(DEADLINE, self.socket.get_mut().write_all(bytes)).await.expect("sending hangs").unwrap();
    }

    /// Ends the sending half of the connection without a word.
    pub async fn half_close(&mut self) {
        self.socket.get_mut().shutdown().await.unwrap();
    }

    pub async fn init(&mut self, payload: Value) {
        self.say(json!({ "type": "connection_init", "payload": payload })).await;
    }

    pub async fn subscribe(&mut self, id: &str, query: &str) {
        self.say(json!({ "type": "subscribe", "id": id, "payload": { "query": query } })).await;
    }

    pub async fn complete(&mut self, id: &str) {
        self.say(json!({ "type": "complete", "id": id })).await;
    }

    pub async fn say(&mut self, message: Value) {
        self.send(Message::text(message.to_string())).await;
    }

    pub async fn send(&mut self, message: Message) {
        timeout(DEADLINE, self.socket.send(message)).await.expect("sending hangs").unwrap();
    }

    async fn next(&mut self) -> Option<Result<Message, Error>> {
        timeout(DEADLINE, self.socket.next()).await.expect("nothing comes")
    }

    /// The next message of the protocol.
    pub async fn receive(&mut self) -> Value {
        loop {
            match self.next().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no message: {other:?}"),
            }
        }
    }

    /// Code and reason of the close; what comes before it is skipped.
    pub async fn closed(mut self) -> (u16, String) {
        loop {
            match self.next().await {
                Some(Ok(Message::Close(Some(close)))) => {
                    return (close.code.into(), close.reason.to_string());
                }
                Some(Ok(Message::Close(None))) | None => panic!("closed without a code"),
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("the socket failed before a close: {error}"),
            }
        }
    }
}

/// The data of a `next`.
pub fn data(message: &Value) -> &Value {
    assert_eq!(message["type"], "next", "{message}");
    &message["payload"]["data"]
}
