//! Standard input over the wire.

use bytes::Bytes;
use tonic::Code;
use wrenn_proto::envd::v1 as pb;

use crate::stand::{Stand, field, shell, until};

#[tokio::test]
async fn in_order_once_and_counted_from_the_start() {
    let mut client = Stand::start().await.client().await;
    let request = pb::StartRequest { stdin: Bytes::from_static(b"one "), ..shell("cat") };
    let mut reader = client.exec(request).await.expect("exec");
    let pid = reader.started().await.pid;

    // The later part comes first and waits for the earlier.
    let mut early = client.clone();
    let early = tokio::spawn(async move { early.write(pid, 8, b"three").await });
    tokio::task::yield_now().await;
    assert!(client.write(pid, 4, b"two ").await.expect("write") >= 8);
    assert_eq!(early.await.expect("join").expect("write"), 13);
    assert_eq!(client.write(pid, 4, b"two ").await.expect("a repeat"), 13);
    assert_eq!(client.write(pid, 8, b"three four").await.expect("an overlap"), 18);
    assert_eq!(client.close(pid).await.expect("close"), 18);
    assert_eq!(client.close(pid).await.expect("again"), 18);

    let told = reader.rest().await;
    assert_eq!(told.stdout, b"one two three four");
    assert_eq!(told.code(), Some(0));
    assert_eq!(client.close(pid).await.expect("even now"), 18);
    let refused = client.write(pid, 18, b"x").await.expect_err("closed");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_gap_is_refused_with_the_offset_that_is_expected() {
    let mut client = Stand::start().await.client().await;
    let mut reader = client.exec(shell("cat")).await.expect("exec");
    let pid = reader.started().await.pid;
    client.write(pid, 0, b"abc").await.expect("write");
    let refused = client.write(pid, 7, b"x").await.expect_err("a gap");
    assert_eq!((refused.code(), field(&refused)), (Code::OutOfRange, Some("sequence")));
    assert!(refused.message().contains("offset 3"), "{}", refused.message());
    client.close(pid).await.expect("close");
    assert_eq!(reader.rest().await.stdout, b"abc");
}

#[tokio::test]
async fn a_process_that_reads_nothing_holds_up_only_its_writer() {
    let mut client = Stand::start().await.client().await;
    let mut reader = client.exec(shell("read line; exec cat | wc -c")).await.expect("exec");
    let pid = reader.started().await.pid;
    let stopped = client.signal(pid, "SIGSTOP").await.expect("stop");
    assert!(stopped.running);

    let mut writer = client.clone();
    let much = vec![b'\n'; 1 << 20];
    let call = tokio::spawn(async move { writer.write(pid, 0, &much).await });
    // Pipe and queue are full by now or soon; either way others are served.
    for _ in 0..20 {
        let told = client.exec(shell("echo served")).await.expect("exec").rest().await;
        assert_eq!(told.stdout, b"served\n");
    }
    assert!(!call.is_finished());
    client.signal(pid, "SIGCONT").await.expect("continue");
    assert_eq!(call.await.expect("join").expect("write"), 1 << 20);
    client.close(pid).await.expect("close");
    let told = reader.rest().await;
    let count: usize = String::from_utf8_lossy(&told.stdout).trim().parse().expect("a number");
    assert!(count + 1 == 1 << 20, "{count} and the line that was read first");
}

#[tokio::test]
async fn a_process_that_closed_its_input_refuses_it() {
    let mut client = Stand::start().await.client().await;
    let mut reader = client.exec(shell("exec 0<&-; echo closed; sleep 1000")).await.expect("exec");
    let pid = reader.started().await.pid;
    reader.next().await.expect("event");
    let refused = until("the pipe is broken", async || client.write(pid, 0, b"x").await.err()).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    client.signal(pid, "SIGKILL").await.expect("kill");
    assert_eq!(reader.rest().await.signal(), Some("SIGKILL"));
}

#[tokio::test]
async fn given_and_closed_at_the_start() {
    let mut client = Stand::start().await.client().await;
    let request =
        pb::StartRequest { stdin: Bytes::from(vec![b'x'; 300_000]), close_stdin: true, ..shell("wc -c") };
    let told = client.exec(request).await.expect("exec").rest().await;
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "300000");

    let request = pb::StartRequest { close_stdin: true, ..shell("wc -c") };
    let told = client.exec(request).await.expect("exec").rest().await;
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "0");
}
