//! Processes that have a terminal.

use std::time::Duration;

use tonic::Code;
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::process_event::Event;

use crate::stand::{Reader, Stand, by_pid, lives, shell, with_token};

fn on_a_terminal(line: &str) -> pb::StartRequest {
    pb::StartRequest { pty: Some(pb::PtySize { columns: 100, rows: 30 }), ..shell(line) }
}

/// Reads until the terminal showed `text`.
async fn shows(reader: &mut Reader, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match reader.next().await.expect("event").expect("more") {
            Event::Output(output) => {
                assert_eq!(output.stream(), pb::OutputStream::Pty);
                seen.push_str(&String::from_utf8_lossy(&output.data));
            }
            other => panic!("waiting for `{text}`, saw `{seen}`, then {other:?}"),
        }
    }
}

#[tokio::test]
async fn echo_size_and_resize() {
    let mut client = Stand::start().await.client().await;
    let line = "tty; stty size; echo $TERM; while read x; do echo got $x; stty size; done; echo bye";
    let mut reader = client.exec(on_a_terminal(line)).await.expect("exec");
    let pid = reader.started().await.pid;
    shows(&mut reader, "30 100\r\nxterm-256color\r\n").await;
    client.write(pid, 0, b"hello\n").await.expect("write");
    shows(&mut reader, "hello\r\ngot hello\r\n").await;

    let size = |columns, rows| pb::ResizeRequest {
        selector: by_pid(pid),
        size: Some(pb::PtySize { columns, rows }),
    };
    client.processes.resize(with_token(size(132, 43))).await.expect("resize");
    client.write(pid, 6, b"x\n").await.expect("write");
    shows(&mut reader, "43 132\r\n").await;
    let listed = client.list().await;
    let present = listed.iter().find(|process| process.pid == pid).and_then(|process| process.size);
    assert_eq!(present, Some(pb::PtySize { columns: 132, rows: 43 }));
    let refused = client.processes.resize(with_token(size(0, 43))).await.expect_err("no width");
    assert_eq!(refused.code(), Code::InvalidArgument);

    let refused = client.close(pid).await.expect_err("a terminal has no end of file");
    assert_eq!(refused.code(), Code::InvalidArgument);
    client.write(pid, 8, b"\x04").await.expect("but a character for it");
    let told = reader.rest().await;
    assert!(String::from_utf8_lossy(&told.pty).ends_with("bye\r\n"));
    assert_eq!(told.code(), Some(0));
    let refused = client.processes.resize(with_token(size(80, 24))).await.expect_err("gone");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn control_characters_reach_the_foreground() {
    let mut client = Stand::start().await.client().await;
    let mut reader = client.exec(on_a_terminal("echo ready; exec sleep 1000")).await.expect("exec");
    let pid = reader.started().await.pid;
    shows(&mut reader, "ready\r\n").await;
    client.write(pid, 0, b"\x03").await.expect("write");
    assert_eq!(reader.rest().await.signal(), Some("SIGINT"));
}

#[tokio::test]
async fn as_another_user_the_terminal_is_theirs() {
    let mut client = Stand::start().await.client().await;
    let request = pb::StartRequest {
        user: "nobody".into(),
        ..on_a_terminal("echo written > $(tty) && echo also > /dev/tty")
    };
    let told = client.exec(request).await.expect("exec").rest().await;
    assert_eq!(String::from_utf8_lossy(&told.pty), "written\r\nalso\r\n");
}

#[tokio::test]
async fn a_background_program_does_not_hold_it() {
    let mut client = Stand::start().await.client().await;
    let line = "(trap '' HUP; exec sleep 1000) & echo done";
    let told = client.exec(on_a_terminal(line)).await.expect("exec").rest().await;
    assert_eq!(String::from_utf8_lossy(&told.pty), "done\r\n");
    assert_eq!(told.code(), Some(0));
    let group = nix::unistd::Pid::from_raw(told.started.expect("started").pid as i32);
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).expect("kill");
}

#[tokio::test]
async fn one_that_nobody_uses_is_hung_up_if_it_was_asked_for() {
    const IDLE: Duration = Duration::from_secs(1);
    let mut client = Stand::start_with_idle(IDLE).await.client().await;
    let waiting = || on_a_terminal("echo here; read x; echo got $x");
    let closing = || pb::StartRequest { close_when_idle: true, ..waiting() };
    let mut reader = client.exec(closing()).await.expect("exec");
    let read = reader.started().await.pid;
    shows(&mut reader, "here\r\n").await;
    let kept = client.start(waiting()).await.expect("start").pid;
    let speaks = "i=0; while :; do echo still; sleep 0.05; done";
    let speaks = pb::StartRequest { close_when_idle: true, ..on_a_terminal(speaks) };
    let speaking = client.start(speaks).await.expect("start").pid;
    let closed = client.start(closing()).await.expect("start").pid;

    assert_eq!(client.exited(closed).await.signal.as_deref(), Some("SIGHUP"));
    // A second one that begins now is closed no sooner than any of the others would have been.
    let closed = client.start(closing()).await.expect("start").pid;
    client.exited(closed).await;
    assert!(
        [read, kept, speaking].into_iter().all(lives),
        "those that are used, or were not to be closed, are kept"
    );
    drop(reader);
    assert_eq!(client.exited(read).await.signal.as_deref(), Some("SIGHUP"), "its reader has left");
    for pid in [kept, speaking] {
        client.signal(pid, "SIGKILL").await.expect("it is there");
    }
}

#[tokio::test]
async fn only_terminals_have_a_size() {
    let mut client = Stand::start().await.client().await;
    let process = client.start(shell("exec sleep 1000")).await.expect("start");
    let request = pb::ResizeRequest {
        selector: by_pid(process.pid),
        size: Some(pb::PtySize { columns: 80, rows: 24 }),
    };
    let refused = client.processes.resize(with_token(request)).await.expect_err("plain");
    assert_eq!(refused.code(), Code::InvalidArgument);
    client.signal(process.pid, "SIGKILL").await.expect("kill");
}
