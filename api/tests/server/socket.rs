use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use crate::{
    harness::{DEADLINE, Running, VIEWER, within},
    http::unfolding,
};

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub async fn open(running: &Running, origin: Option<&str>) -> Result<Socket, Error> {
    let url = format!("ws://{}/graphql", running.server.local_addr());
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse().unwrap());
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    within(connect_async(request)).await.map(|(socket, _)| socket)
}

pub async fn say(socket: &mut Socket, message: Value) {
    within(socket.send(Message::text(message.to_string()))).await.unwrap();
}

async fn hear(socket: &mut Socket) -> Message {
    within(socket.next()).await.expect("the socket ended").unwrap()
}

pub async fn hear_json(socket: &mut Socket) -> Value {
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
async fn a_socket_ends_with_its_key() {
    let running = Running::start("WRENN_WS_RECHECK_SEC = 1").await;
    let mut socket = open(&running, None).await.unwrap();
    say(&mut socket, json!({ "type": "connection_init", "payload": { "apiKey": running.api_key } })).await;
    assert_eq!(hear_json(&mut socket).await["type"], "connection_ack");
    running.revoke_keys().await;
    assert_eq!(close_code(hear(&mut socket).await), 4403);
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_sent_once_and_then_asked_for() {
    let running = Running::start("").await;
    let mut socket = open(&running, None).await.unwrap();
    say(&mut socket, json!({ "type": "connection_init", "payload": { "apiKey": running.api_key } })).await;
    assert_eq!(hear_json(&mut socket).await["type"], "connection_ack");
    let hash: String = Sha256::digest(VIEWER).iter().map(|byte| format!("{byte:02x}")).collect();
    let extensions = json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } });
    let ask = |payload: Value| json!({ "type": "subscribe", "id": "1", "payload": payload });
    let by_hash = ask(json!({ "extensions": extensions }));

    for (asked, message, code) in [
        (by_hash.clone(), "PersistedQueryNotFound", "NOT_FOUND"),
        (
            ask(json!({ "query": "{ viewer { __typename } }", "extensions": extensions })),
            "`sha256Hash` is not that of the query",
            "INVALID_INPUT",
        ),
    ] {
        say(&mut socket, asked).await;
        let refused = hear_json(&mut socket).await;
        assert_eq!(refused["type"], "error", "{refused}");
        assert_eq!(refused["payload"][0]["message"], message);
        assert_eq!(refused["payload"][0]["extensions"]["code"], code);
    }
    for asked in [ask(json!({ "query": VIEWER, "extensions": extensions })), by_hash] {
        say(&mut socket, asked).await;
        let next = hear_json(&mut socket).await;
        assert_eq!(next["payload"]["data"]["viewer"]["team"]["id"], running.team_id, "{next}");
        assert_eq!(hear_json(&mut socket).await["type"], "complete");
    }
    // By whichever way it was shown.
    let asked = running.post().json(&json!({ "extensions": extensions }));
    let answer = asked.header("x-api-key", &running.api_key).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["data"]["viewer"]["team"]["id"], running.team_id, "{answer}");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_by_post_is_refused_here() {
    let running = Running::start("").await;
    let mut socket = open(&running, None).await.unwrap();
    say(&mut socket, json!({ "type": "connection_init", "payload": { "apiKey": running.api_key } })).await;
    assert_eq!(hear_json(&mut socket).await["type"], "connection_ack");
    let streams: String = (0..100).map(|number| format!("a{number}: capsules {{ __typename }} ")).collect();
    let mut documents = unfolding();
    documents.extend([
        (format!("subscription {{ {streams} }}"), "exactly one field"),
        (
            "subscription { ...F } fragment F on Subscription { capsules { __typename } }".to_owned(),
            "exactly one field",
        ),
    ]);
    for (document, message) in documents {
        say(&mut socket, json!({ "type": "subscribe", "id": "1", "payload": { "query": document } })).await;
        let refused = hear_json(&mut socket).await;
        assert_eq!(refused["type"], "error", "{refused}");
        assert_eq!(refused["payload"][0]["extensions"]["code"], "INVALID_INPUT", "{refused}");
        assert!(refused["payload"][0]["message"].as_str().unwrap().contains(message), "{refused}");
    }
    drop(socket);
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
