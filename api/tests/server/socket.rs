use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use crate::harness::{DEADLINE, Running, VIEWER};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn open(running: &Running, origin: Option<&str>) -> Result<Socket, Error> {
    let url = format!("ws://{}/graphql", running.server.local_addr());
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse().unwrap());
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    connect_async(request).await.map(|(socket, _)| socket)
}

async fn say(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn hear(socket: &mut Socket) -> Message {
    timeout(DEADLINE, socket.next()).await.expect("nothing comes").expect("the socket ended").unwrap()
}

async fn hear_json(socket: &mut Socket) -> Value {
    serde_json::from_str(hear(socket).await.to_text().unwrap()).unwrap()
}

fn close_code(message: Message) -> u16 {
    match message {
        Message::Close(Some(close)) => close.code.into(),
        other => panic!("not a close: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_run_over_the_socket_until_the_server_goes() {
    let running = Running::start("").await;
    let mut socket = open(&running, None).await.unwrap();
    say(&mut socket, json!({ "type": "connection_init", "payload": { "apiKey": running.api_key } })).await;
    assert_eq!(hear_json(&mut socket).await["type"], "connection_ack");
    say(&mut socket, json!({ "type": "subscribe", "id": "1", "payload": { "query": VIEWER } })).await;
    let next = hear_json(&mut socket).await;
    assert_eq!(next["payload"]["data"]["viewer"]["team"]["id"], running.team_id, "{next}");
    assert_eq!(hear_json(&mut socket).await["type"], "complete");

    let start = Instant::now();
    let reading = tokio::spawn(async move { close_code(hear(&mut socket).await) });
    running.server.stop().await;
    assert_eq!(reading.await.unwrap(), 1001);
    assert!(start.elapsed() < DEADLINE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_or_none_is_4403() {
    let running = Running::start("").await;
    for payload in [json!({ "apiKey": "wrn_wrong" }), json!({})] {
        let mut socket = open(&running, None).await.unwrap();
        say(&mut socket, json!({ "type": "connection_init", "payload": payload })).await;
        assert_eq!(close_code(hear(&mut socket).await), 4403);
    }
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_do_not_connect() {
    let running = Running::start("WRENN_CORS_ORIGINS = 'https://dashboard.example'").await;
    let own = format!("http://{}", running.server.local_addr());
    for origin in [own.as_str(), "https://dashboard.example"] {
        open(&running, Some(origin)).await.unwrap();
    }
    match open(&running, Some("https://evil.example")).await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), 403);
            let body: Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
            assert_eq!(body["errors"][0]["extensions"]["code"], "FORBIDDEN");
        }
        other => panic!("not refused: {other:?}"),
    }
    running.server.stop().await;
}
