//! Who gets in, how long they stay, and the codes by which they leave.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use wrenn_api::ws::Limits;

use crate::{client::Client, eventually, gate::TestServer};

fn start() -> TestServer {
    TestServer::start(Limits::default())
}

#[tokio::test]
async fn an_operation_before_the_acknowledgement_is_4401() {
    let server = start();
    let mut client = Client::open(server.address).await;
    client.subscribe("1", "{ hello }").await;
    assert_eq!(client.closed().await, (4401, "Unauthorized".to_owned()));
}

#[tokio::test]
async fn refused_credentials_are_4403() {
    let server = start();
    for payload in [json!({ "apiKey": "bad" }), json!({}), json!(null), json!({ "authorization": "good" })] {
        let mut client = Client::open(server.address).await;
        client.init(payload).await;
        assert_eq!(client.closed().await, (4403, "Forbidden".to_owned()));
    }
}

#[tokio::test]
async fn credentials_come_in_the_payload_or_the_header() {
    let server = start();
    let protocol = ("sec-websocket-protocol", "graphql-transport-ws");
    let mut bearer = Client::open(server.address).await;
    bearer.init(json!({ "authorization": "Bearer good" })).await;
    assert_eq!(bearer.receive().await["type"], "connection_ack");
    let mut header = Client::open_with(server.address, &[protocol, ("x-api-key", "good")]).await;
    header.init(json!({ "unrelated": true })).await;
    assert_eq!(header.receive().await["type"], "connection_ack");
    let mut payload_wins = Client::open_with(server.address, &[protocol, ("x-api-key", "good")]).await;
    payload_wins.init(json!({ "apiKey": "bad" })).await;
    assert_eq!(payload_wins.closed().await.0, 4403);
}

#[tokio::test]
async fn who_cannot_be_checked_now_may_come_again() {
    let server = start();
    let mut client = Client::open(server.address).await;
    client.init(json!({ "apiKey": "unlucky" })).await;
    assert_eq!(client.closed().await.0, 1013);
}

#[tokio::test]
async fn a_second_init_is_4429() {
    let server = start();
    let mut acknowledged = Client::connect(server.address).await;
    acknowledged.init(json!({ "apiKey": "good" })).await;
    assert_eq!(acknowledged.closed().await, (4429, "Too many initialisation requests".to_owned()));
    let mut waiting = Client::open(server.address).await;
    waiting.init(json!({ "apiKey": "hangs" })).await;
    waiting.init(json!({ "apiKey": "good" })).await;
    assert_eq!(waiting.closed().await.0, 4429);
}

#[tokio::test]
async fn no_acknowledged_init_in_time_is_4408() {
    let server = TestServer::start(Limits { init_timeout: Duration::from_millis(200), ..Limits::default() });
    let start = Instant::now();
    let silent = Client::open(server.address).await;
    let mut hanging = Client::open(server.address).await;
    hanging.init(json!({ "apiKey": "hangs" })).await;
    let late = (4408, "Connection initialisation timeout".to_owned());
    assert_eq!((silent.closed().await, hanging.closed().await), (late.clone(), late));
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn what_is_not_of_the_protocol_is_4400() {
    let server = start();
    for text in ["hello", "[]", r#"{"type":"start","id":"1"}"#, r#"{"type":"subscribe","id":"1"}"#] {
        let mut client = Client::connect(server.address).await;
        client.send(Message::text(text)).await;
        let (code, reason) = client.closed().await;
        assert_eq!(code, 4400, "{text}");
        assert!(reason.starts_with("Invalid message: "), "{reason}");
    }
    let mut client = Client::connect(server.address).await;
    client.send(Message::binary(b"{}".as_slice())).await;
    assert_eq!(client.closed().await.0, 4400);
}

#[tokio::test]
async fn another_subprotocol_is_4406() {
    let server = start();
    let client = Client::open_with(server.address, &[]).await;
    assert_eq!(client.closed().await, (4406, "Subprotocol not acceptable".to_owned()));
}

#[tokio::test]
async fn an_oversized_message_is_1009() {
    let server = TestServer::start(Limits { max_message: 4096, ..Limits::default() });
    let mut client = Client::connect(server.address).await;
    client.subscribe("1", &format!("{{ hello }} #{}", "x".repeat(5000))).await;
    assert_eq!(client.closed().await, (1009, "Message too big".to_owned()));
}

#[tokio::test]
async fn revoked_credentials_end_the_socket_with_4403() {
    let server = TestServer::start(Limits { recheck_every: Duration::from_millis(50), ..Limits::default() });
    let mut client = Client::connect(server.address).await;
    client.subscribe("1", "subscription { silence }").await;
    eventually("the subscription runs", || server.probe.alive() == 1).await;
    server.probe.revoked.store(true, Ordering::SeqCst);
    assert_eq!(client.closed().await, (4403, "Forbidden".to_owned()));
    eventually("the subscription is gone", || server.probe.alive() == 0).await;
}

#[tokio::test]
async fn a_shutdown_says_1001() {
    let server = start();
    let mut client = Client::connect(server.address).await;
    client.subscribe("1", "subscription { silence }").await;
    eventually("the subscription runs", || server.probe.alive() == 1).await;
    server.stop.cancel();
    assert_eq!(client.closed().await, (1001, "Going away".to_owned()));
    eventually("the subscription is gone", || server.probe.alive() == 0).await;
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_dropped() {
    let server = TestServer::start(Limits { ping_every: Duration::from_millis(50), ..Limits::default() });
    let mut answering = Client::connect(server.address).await;
    answering.subscribe("1", "subscription { ticks(everyMs: 20) }").await;
    let mut silent = Client::connect(server.address).await;
    silent.subscribe("1", "subscription { silence }").await;
    eventually("both run", || server.probe.alive() == 2).await;
    // Reading is what answers pings: `silent` does not read.
    for _ in 0..50 {
        answering.receive().await;
    }
    eventually("the silent one is gone", || server.probe.alive() == 1).await;
    answering.receive().await;
}
