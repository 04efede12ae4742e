//! Nothing lost, nothing doubled, and who waits for whom.

use std::time::{Duration, Instant};

use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::process_event::Event;

use crate::stand::{Client, Counted, Reader, Stand, by_pid, from_stdout, shell, until, with_token};

/// 64 MiB.
const LINES: u64 = 8 << 20;
const TOTAL: u64 = LINES * Counted::LINE;

/// Reads stdout up to the exit, every byte checked; returns the offset it ended at.
pub async fn read_counted(reader: &mut Reader, mut offset: u64) -> u64 {
    loop {
        match reader.next().await.expect("event").expect("an exit before the end") {
            Event::Started(_) => {}
            Event::Output(output) => {
                assert_eq!(output.sequence, offset, "no hole and no repeat");
                Counted::check(offset, &output.data);
                offset += output.data.len() as u64;
            }
            Event::Gap(gap) => panic!("bytes were lost: {gap:?}"),
            Event::Exited(exited) => {
                assert_eq!(exited.exit_code, Some(0));
                return offset;
            }
        }
    }
}

/// Waits until a process is held back: what it wrote has not grown in a while.
///
/// That it is held cannot be asked for; that it stays where it is can be seen.
async fn held_at(pid: u32) -> u64 {
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let line = io.lines().find_map(|it| it.strip_prefix("wchar: ")).unwrap_or("0").to_owned();
        line.parse::<u64>().expect("a number")
    };
    let mut last = (written(), Instant::now());
    until("the process stands still", async || {
        let now = written();
        if now != last.0 || now == 0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_millis(300)).then_some(last.0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_arrives_whole() {
    let mut client = Stand::start().await.client().await;
    let mut reader = client.exec(shell(&Counted::line(LINES))).await.expect("exec");
    assert_eq!(read_counted(&mut reader, 0).await, TOTAL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_its_process_and_no_other() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let mut slow = client.exec(shell(&Counted::line(LINES))).await.expect("exec");
    let pid = slow.started().await.pid;
    let held = held_at(pid).await;
    assert!(held < 2 << 20, "{held} bytes were written ahead of a reader that takes none");

    // The same connection, the same daemon: another process is not held.
    let mut other = client.exec(shell(&Counted::line(LINES))).await.expect("exec");
    assert_eq!(read_counted(&mut other, 0).await, TOTAL);
    assert!(client.list().await.iter().any(|it| it.pid == pid && it.running), "still held");

    assert_eq!(read_counted(&mut slow, 0).await, TOTAL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_leaves_frees_those_who_stay() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let mut slow = client.exec(shell(&Counted::line(LINES))).await.expect("exec");
    let pid = slow.started().await.pid;
    let mut fast = client.follow(pid, from_stdout(0)).await.expect("follow");
    held_at(pid).await;
    drop(slow);
    assert_eq!(read_counted(&mut fast, 0).await, TOTAL);
}

/// Reads some, then dies; returns how far it got.
async fn die_mid_flood(mut client: Client, reader: &mut Reader, enough: u64) -> u64 {
    let mut offset = 0;
    while offset < enough {
        if let Event::Output(output) = reader.next().await.expect("event").expect("more") {
            Counted::check(offset, &output.data);
            offset += output.data.len() as u64;
        }
    }
    client.list().await;
    client.cut();
    offset
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_dies_continues_where_it_was() {
    let stand = Stand::start().await;
    for enough in [1, 1 << 20, 20 << 20] {
        let mut dying = stand.client().await;
        let mut reader = dying.exec(shell(&Counted::line(LINES))).await.expect("exec");
        let pid = reader.started().await.pid;
        let offset = die_mid_flood(dying, &mut reader, enough).await;

        let mut again = stand.client().await;
        // It waits with a full pipe for its reader to come back.
        held_at(pid).await;
        let mut reader = again.follow(pid, from_stdout(offset)).await.expect("follow");
        assert_eq!(read_counted(&mut reader, offset).await, TOTAL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_never_comes_back_is_given_up() {
    let grace = Duration::from_millis(200);
    let peer = std::net::Ipv4Addr::LOCALHOST.into();
    let stand = Stand::start_with(crate::stand::FakeSystem::new(), grace, peer).await;
    let mut dying = stand.client().await;
    let mut reader = dying.exec(shell(&Counted::line(LINES))).await.expect("exec");
    let pid = reader.started().await.pid;
    let offset = die_mid_flood(dying, &mut reader, 1).await;

    let mut again = stand.client().await;
    assert_eq!(again.exited(pid).await.exit_code, Some(0));
    let told = again.follow(pid, from_stdout(offset)).await.expect("follow").rest().await;
    let oldest = TOTAL - told.stdout.len() as u64;
    let gap = pb::ProcessGap { stream: pb::OutputStream::Stdout.into(), from: offset, to: oldest };
    assert_eq!(told.gaps, [gap]);
    Counted::check(oldest, &told.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_nobody_reads_runs_to_its_end() {
    let mut client = Stand::start().await.client().await;
    let process = client.start(shell(&Counted::line(LINES))).await.expect("start");
    assert_eq!(client.exited(process.pid).await.exit_code, Some(0));

    let told = client.follow(process.pid, from_stdout(8)).await.expect("follow").rest().await;
    assert_eq!(told.started.as_ref().map(|it| it.pid), Some(process.pid));
    assert_eq!(told.stdout.len(), 1 << 20, "a full ring is left");
    let oldest = TOTAL - (1 << 20);
    let gap = pb::ProcessGap { stream: pb::OutputStream::Stdout.into(), from: 8, to: oldest };
    assert_eq!(told.gaps, [gap]);
    Counted::check(oldest, &told.stdout);
    assert_eq!(told.code(), Some(0));

    // Without a cursor: what there is, and no gap.
    let told = client.follow(process.pid, pb::OutputCursor::default()).await.expect("follow").rest().await;
    assert_eq!((told.gaps.len(), told.stdout.len()), (0, 1 << 20));
}

#[tokio::test]
async fn both_streams_with_their_own_offsets() {
    let mut client = Stand::start().await.client().await;
    let line = "printf out; printf error >&2; exit 3";
    let told = client.exec(shell(line)).await.expect("exec").rest().await;
    assert_eq!((told.stdout.as_slice(), told.stderr.as_slice()), (&b"out"[..], &b"error"[..]));
    assert_eq!(told.code(), Some(3));

    let pid = told.started.expect("started").pid;
    let after = pb::OutputCursor { stdout: Some(3), stderr: Some(2), pty: None };
    let told = client.follow(pid, after).await.expect("follow").rest().await;
    assert_eq!((told.stdout.as_slice(), told.stderr.as_slice()), (&b""[..], &b"ror"[..]));

    let refused = client.follow(pid, from_stdout(4)).await.err().expect("beyond the end");
    assert_eq!(refused.code(), tonic::Code::OutOfRange);
}

#[tokio::test]
async fn background_programs_do_not_hold_an_exec() {
    let mut client = Stand::start().await.client().await;
    // It keeps both pipes open, writes on, and must live on with them.
    let line = "(while :; do echo late; sleep 0.05; done) & echo $! >&2; exit 4";
    let told = client.exec(shell(line)).await.expect("exec").rest().await;
    assert_eq!(told.code(), Some(4));
    let pid: u32 = String::from_utf8_lossy(&told.stderr).trim().parse().expect("a pid");
    assert!(crate::stand::lives(pid), "it was not killed by a closed pipe");
    let whole_group = nix::unistd::Pid::from_raw(told.started.expect("started").pid as i32);
    nix::sys::signal::killpg(whole_group, nix::sys::signal::Signal::SIGKILL).expect("kill");
    until("it is gone", async || (!crate::stand::lives(pid)).then_some(())).await;
}

#[tokio::test]
async fn what_was_in_the_pipe_at_the_exit_is_delivered_to_a_slow_reader() {
    let mut client = Stand::start().await.client().await;
    // A program of another session keeps the pipe open, so that there is no end of file to wait for.
    let line = format!("setsid sleep 1000 & echo $! >&2; {}", Counted::line(LINES));
    let mut slow = client.exec(shell(&line)).await.expect("exec");
    let pid = slow.started().await.pid;
    let written = held_at(pid).await as usize;
    client.signal(pid, "SIGKILL").await.expect("kill");
    client.exited(pid).await;
    tokio::time::sleep(2 * wrenn_envd::pump::LINGER).await;
    let told = slow.rest().await;
    assert_eq!(told.signal(), Some("SIGKILL"));
    let arrived = told.stdout.len() + told.stderr.len();
    assert!(arrived >= written, "{arrived} of {written} bytes");
    Counted::check(0, &told.stdout);
    let sleeper = String::from_utf8_lossy(&told.stderr).trim().parse().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
}

#[tokio::test]
async fn the_last_exited_are_listed_and_those_before_can_be_followed() {
    let mut client = Stand::start().await.client().await;
    let request = pb::StartRequest { tag: "first".into(), ..shell("echo x; exit 3") };
    let first = client.exec(request).await.expect("exec").rest().await.started.expect("started").pid;
    for _ in 0..70 {
        client.exec(shell("true")).await.expect("exec").rest().await;
    }
    let exited = until("the oldest are not listed", async || {
        let list = client.list().await;
        (list.len() <= 64).then_some(list)
    })
    .await;
    assert!(exited.len() == 64 && exited.iter().all(|it| it.pid != first));

    // Whoever does not know that it was started learns what has become of it, and need not start it again.
    let by_tag = Some(pb::Selector { by: Some(pb::selector::By::Tag("first".into())) });
    for selector in [by_pid(first), by_tag] {
        let request = pb::FollowRequest { selector, after: Some(from_stdout(0)) };
        let events = client.processes.follow(with_token(request)).await.expect("follow").into_inner();
        let told = Reader { events }.rest().await;
        assert_eq!(told.started, Some(pb::ProcessStarted { pid: first, tag: "first".into() }));
        assert_eq!((told.stdout.as_slice(), told.gaps.len(), told.code()), (&b"x\n"[..], 0, Some(3)));
    }
    assert_eq!(client.signal(first, "SIGKILL").await.expect_err("gone").code(), tonic::Code::NotFound);
}
