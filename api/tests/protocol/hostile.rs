//! Peers that mean harm: each is shown out by the right code, or stopped, and nobody else notices.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use wrenn_api::ws::Limits;

use crate::{
    client::{Client, data},
    eventually,
    gate::TestServer,
};

/// A frame of a client: its first byte as given, masked by zeroes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | u8::try_from(short).unwrap()),
        long => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(long).unwrap().to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// What somebody else on the server gets meanwhile.
async fn neighbour_is_served(server: &TestServer) {
    let mut neighbour = Client::connect(server.address).await;
    neighbour.subscribe("1", "{ hello }").await;
    assert_eq!(data(&neighbour.receive().await), &json!({ "hello": "world" }));
}

#[tokio::test]
async fn frames_that_are_none_end_the_socket_with_the_code_for_it() {
    const TEXT: u8 = 0x81;
    let server = TestServer::start(Limits::default());
    let unmasked = [TEXT, 2, b'{', b'}'].to_vec();
    let mut endless = vec![TEXT, 0x80 | 127];
    endless.extend(u64::MAX.to_be_bytes());
    endless.extend([0; 4]);
    let huge = [&[TEXT, 0x80 | 127][..], &(1u64 << 40).to_be_bytes(), &[0; 4]].concat();
    for (what, bytes, code) in [
        ("text that is not UTF-8", frame(TEXT, &[b'"', 0xff, 0xfe, b'"']), 1007),
        ("half a character", frame(TEXT, &[0xe2, 0x82]), 1007),
        ("a surrogate", frame(TEXT, &[0xed, 0xa0, 0x80]), 1007),
        ("a reserved bit", frame(TEXT | 0x40, b"{}"), 1002),
        ("a reserved opcode", frame(0x83, b"{}"), 1002),
        ("no mask", unmasked, 1002),
        ("a continuation of nothing", frame(0x80, b"{}"), 1002),
        ("a ping in pieces", frame(0x09, b""), 1002),
        ("a ping that is too long", frame(0x89, &[0; 126]), 1002),
        ("a length of 2^40", huge, 1009),
        ("a length of 2^64-1", endless, 1009),
        ("bytes", frame(0x82, b"{}"), 4400),
        ("no JSON", frame(TEXT, b"{"), 4400),
        ("zeroes", frame(TEXT, &[0; 100]), 4400),
        ("nothing", frame(TEXT, b""), 4400),
    ] {
        let mut client = Client::connect(server.address).await;
        client.subscribe("1", "subscription { silence }").await;
        client.send_raw(&bytes).await;
        assert_eq!(client.closed().await.0, code, "{what}");
        eventually("its operations are gone", || server.probe.alive() == 0).await;
    }
    neighbour_is_served(&server).await;
}

#[tokio::test]
async fn depth_and_size_are_bounded_however_they_come() {
    let limits = Limits { max_message: 256 * 1024, ..Limits::default() };
    let server = TestServer::start(limits);
    for deep in ["[".repeat(200_000), format!("{}1", r#"{"a":"#.repeat(40_000))] {
        let mut client = Client::connect(server.address).await;
        client.send(Message::text(deep)).await;
        assert_eq!(client.closed().await.0, 4400);
    }
    let mut nested = Client::connect(server.address).await;
    nested.subscribe("1", &format!("{} hello {}", "{ a".repeat(20_000), "}".repeat(20_000))).await;
    let refused = nested.receive().await;
    assert_eq!(refused["type"], "error", "{refused}");

    // In pieces, none of which is too large.
    let mut pieces = Client::connect(server.address).await;
    pieces.send_raw(&frame(0x01, &[b' '; 60_000])).await;
    for _ in 0..5 {
        pieces.send_raw(&frame(0x00, &[b' '; 60_000])).await;
    }
    assert_eq!(pieces.closed().await.0, 1009);
    neighbour_is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_subscribes_run_as_many_as_may() {
    let server = TestServer::start(Limits { max_operations: 50, ..Limits::default() });
    let mut reading = Client::connect(server.address).await;
    for number in 0..5000 {
        reading.subscribe(&number.to_string(), "subscription { silence }").await;
        if number >= 50 {
            let refused = reading.receive().await;
            assert_eq!((&refused["type"], &refused["id"]), (&json!("error"), &json!(number.to_string())));
            assert_eq!(refused["payload"][0]["extensions"]["code"], "RESOURCE_EXHAUSTED");
        }
    }
    eventually("as many run as may", || server.probe.alive() == 50).await;
    drop(reading);
    eventually("all are gone", || server.probe.alive() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_without_end_and_reads_nothing_is_stopped() {
    let server = TestServer::start(Limits { max_operations: 50, ..Limits::default() });
    let mut deaf = Client::connect(server.address).await;
    let long = "x".repeat(200);
    let asking = async {
        for number in 0_u64.. {
            let subscribe = json!({ "type": "subscribe", "id": format!("{long}{number}"),
                                    "payload": { "query": "subscription { silence }" } });
            let sent =
                futures_util::SinkExt::send(&mut deaf.socket, Message::text(subscribe.to_string())).await;
            if sent.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(crate::DEADLINE * 3, asking).await.expect("it is stopped");
    eventually("all are gone", || server.probe.alive() == 0).await;
    neighbour_is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_without_end_make_nothing_grow() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    client.subscribe("tick", "subscription { ticks(everyMs: 20) }").await;
    let payload = "x".repeat(1000);
    for number in 0..20_000 {
        client.say(json!({ "type": "ping", "payload": { "n": number, "fill": payload } })).await;
    }
    // Of those that could not be answered in time only the last one is.
    let (mut answered, mut latest) = (0, -1);
    while latest < 19_999 {
        let message = client.receive().await;
        if message["type"] == "pong" {
            let number = message["payload"]["n"].as_i64().unwrap();
            assert!(number > latest);
            (answered, latest) = (answered + 1, number);
        }
    }
    eprintln!("{answered} of 20000 pings were answered");
}

#[tokio::test]
async fn pongs_nobody_asked_for_open_no_window() {
    let server = TestServer::start(Limits::default());
    let mut liar = Client::connect(server.address).await;
    liar.subscribe("flood", "subscription { flood(bytes: 65536) }").await;
    for bytes in [&u64::MAX.to_be_bytes()[..], &[0xff; 7], b"", &[0; 100]] {
        liar.send(Message::Pong(bytes.to_vec().into())).await;
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        liar.send(Message::Pong(u64::MAX.to_be_bytes().to_vec().into())).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(server.probe.produced() < 2 * 1024 * 1024, "{} bytes", server.probe.produced());
}

#[tokio::test]
async fn half_a_frame_and_half_a_connection_are_not_kept() {
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        init_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = TestServer::start(limits);
    let mut half = Client::connect(server.address).await;
    half.subscribe("1", "subscription { silence }").await;
    eventually("it runs", || server.probe.alive() == 1).await;
    half.send_raw(&frame(0x81, &[b' '; 100])[..50]).await;
    eventually("half a frame is no sign of life", || server.probe.alive() == 0).await;

    let mut closed = Client::connect(server.address).await;
    closed.subscribe("1", "subscription { silence }").await;
    eventually("it runs", || server.probe.alive() == 1).await;
    closed.half_close().await;
    eventually("who says nothing any more hears nothing any more", || server.probe.alive() == 0).await;

    // An init that never ends does not hold the socket either.
    let mut slow = Client::open(server.address).await;
    slow.send_raw(&frame(0x01, br#"{"type":"conn"#)).await;
    assert_eq!(slow.closed().await.0, 4408);
}
