//! How many connections there may be.

use std::time::Duration;

use reqwest::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{DEADLINE, Running, within};

/// For what is not to happen: only a server that is wrong ends it.
const MOMENT: Duration = Duration::from_millis(300);

/// A connection that has become a WebSocket.
async fn socket(running: &Running) -> TcpStream {
    let mut stream = TcpStream::connect(running.server.local_addr()).await.unwrap();
    let head = "GET /graphql HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
        sec-websocket-protocol: graphql-transport-ws\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_all_places_are_taken_waits() {
    let running = Running::start("WRENN_MAX_CONNECTIONS = 2").await;
    let (one, other) = (socket(&running).await, socket(&running).await);
    let mut asked = Box::pin(running.get("/health").send());
    assert!(timeout(MOMENT, &mut asked).await.is_err(), "there is no place for it");
    drop(one);
    let answer = timeout(DEADLINE, asked).await.expect("a place is free").unwrap();
    assert_eq!(answer.status(), 200);
    drop(other);
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_place_stops_all_the_same() {
    let running = Running::start("WRENN_MAX_CONNECTIONS = 1").await;
    let _one = socket(&running).await;
    timeout(DEADLINE, running.server.stop()).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_only_so_many() {
    let running = Running::start("WRENN_MAX_CONNECTIONS_PER_PEER = 2").await;
    let (one, _other) = (socket(&running).await, socket(&running).await);
    let mut third = TcpStream::connect(running.server.local_addr()).await.unwrap();
    let ended = timeout(DEADLINE, third.read(&mut [0])).await.expect("is hung up on");
    assert_eq!(ended.unwrap_or(0), 0);
    drop(one);
    // One connection for each try.
    let http = Client::builder().pool_max_idle_per_host(0).timeout(DEADLINE).build().unwrap();
    let served = async {
        while http.get(running.url("/health")).send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, served).await.expect("a place is free");
    running.server.stop().await;
}
