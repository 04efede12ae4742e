//! Who is let in.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tonic::{Code, Request};
use wrenn_proto::envd::v1 as pb;

use crate::stand::{FakeSystem, Stand, configuration, shell, with_token};

#[tokio::test]
async fn only_the_peer_may_connect() {
    let elsewhere = "127.0.0.9".parse().expect("an address");
    let stand = Stand::start_with(FakeSystem::new(), Duration::from_secs(30), elsewhere).await;
    let mut stream = tokio::net::TcpStream::connect(stand.address).await.expect("the port is open");
    let mut answer = Vec::new();
    // Closed without a word; as an end or as a reset.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    let refused = stand.stranger().await.guest.health(pb::HealthRequest {}).await;
    // Which of the two depends on where the connection was when it ended.
    assert!(matches!(refused.expect_err("not the peer").code(), Code::Unavailable | Code::Cancelled));
}

#[tokio::test]
async fn the_token_is_fixed_once_and_needed_ever_after() {
    let stand = Stand::start().await;
    let mut client = stand.stranger().await;
    let health = async |client: &mut crate::stand::Client| {
        client.guest.health(pb::HealthRequest {}).await.expect("health").into_inner()
    };
    assert!(!health(&mut client).await.configured);
    let refused = client.exec(shell("true")).await.err().expect("no token yet");
    assert_eq!(refused.code(), Code::Unauthenticated);
    client.guest.prepare_snapshot(pb::PrepareSnapshotRequest {}).await.expect("allowed before");

    let short = pb::ConfigureRequest { token: bytes::Bytes::from_static(b"short"), ..Default::default() };
    let refused = client.guest.configure(short).await.expect_err("too short");
    assert_eq!(refused.code(), Code::InvalidArgument);
    client.guest.configure(configuration()).await.expect("configure");
    assert!(health(&mut client).await.configured);

    let refused = client.guest.configure(configuration()).await.expect_err("no metadata");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut wrong = Request::new(pb::ListRequest {});
    wrong.metadata_mut().insert(wrenn_proto::TOKEN, "00".repeat(32).parse().expect("ascii"));
    assert_eq!(client.processes.list(wrong).await.expect_err("wrong").code(), Code::Unauthenticated);
    let another = pb::ConfigureRequest { token: vec![9; 32].into(), ..Default::default() };
    let refused = client.guest.configure(with_token(another)).await.expect_err("another");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(client.list().await.is_empty());
}

#[tokio::test]
async fn noise_does_not_end_the_daemon() {
    use tokio::io::AsyncWriteExt;
    let stand = Stand::start().await;
    let noise: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff", b""];
    for bytes in noise {
        let mut stream = tokio::net::TcpStream::connect(stand.address).await.expect("connect");
        let _ = stream.write_all(bytes).await;
    }
    let mut client = stand.client().await;
    let told = client.exec(shell("echo fine")).await.expect("exec").rest().await;
    assert_eq!(told.stdout, b"fine\n");
}
