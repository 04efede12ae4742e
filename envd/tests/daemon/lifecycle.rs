//! Starting, naming, signalling, ending.

use std::time::Duration;

use tonic::Code;
use wrenn_proto::envd::v1 as pb;

use crate::stand::{Stand, by_pid, field, from_stdout, lives, shell, until, with_token};

fn by_tag(tag: &str) -> Option<pb::Selector> {
    Some(pb::Selector { by: Some(pb::selector::By::Tag(tag.into())) })
}

/// The pids that a process printed on its first line.
async fn printed_pids(reader: &mut crate::stand::Reader) -> Vec<u32> {
    let mut text = String::new();
    while !text.contains('\n') {
        let event = reader.next().await.expect("event").expect("not the end");
        if let pb::process_event::Event::Output(it) = event {
            text.push_str(&String::from_utf8_lossy(&it.data));
        }
    }
    text.split_whitespace().map(|it| it.parse().expect("a pid")).collect()
}

#[tokio::test]
async fn the_process_is_as_it_was_asked_for() {
    let mut client = Stand::start().await.client().await;
    let request = pb::StartRequest {
        cwd: "/usr".into(),
        env: vec![pb::EnvVar { name: "GREETING".into(), value: "hello you".into() }],
        tag: "probe".into(),
        ..shell(
            "echo $GREETING; pwd; echo $HOME $USER; umask; ls /proc/self/fd | tr '\\n' ' '; ps -o pgid=,sid= -p $$",
        )
    };
    let process = client.start(request).await.expect("start");
    assert_eq!(
        (process.tag.as_str(), process.user.as_str(), process.cwd.as_str()),
        ("probe", "root", "/usr")
    );
    assert!(process.command.starts_with("echo $GREETING"));
    let told = client.follow(process.pid, from_stdout(0)).await.expect("follow").rest().await;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(&lines[..4], ["hello you", "/usr", "/root root", "0022"]);
    // 3 is the directory that `ls` itself reads.
    let (fds, ids) = lines[4].split_once("3 ").expect("descriptors");
    assert_eq!(fds, "0 1 2 ", "nothing of envd is open in it");
    let own = process.pid.to_string();
    assert_eq!(ids.split_whitespace().collect::<Vec<_>>(), [&own, &own], "its own group and session");

    let listed = client.exited(process.pid).await;
    assert_eq!((listed.exit_code, listed.signal, listed.running), (Some(0), None, false));
}

#[tokio::test]
async fn signals_are_as_nothing_had_been_done_to_them() {
    let mut client = Stand::start().await.client().await;
    let told =
        client.exec(shell("grep -E '^Sig(Blk|Ign)' /proc/self/status")).await.expect("exec").rest().await;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    for line in text.lines() {
        let (_, mask) = line.split_once('\t').expect("a mask");
        let mask = u64::from_str_radix(mask, 16).expect("hexadecimal");
        // 32 and 33 are libc's own; whoever started these tests may have changed them, nobody else can.
        assert_eq!(mask & !(0b11 << 31), 0, "{line}");
    }
    assert_eq!(text.lines().count(), 2);
}

#[tokio::test]
async fn as_another_user() {
    let mut client = Stand::start().await.client().await;
    let request = pb::StartRequest { user: "nobody".into(), ..shell("id -u; id -G; cat /etc/shadow") };
    let told = client.exec(request).await.expect("exec").rest().await;
    let stdout = String::from_utf8_lossy(&told.stdout).into_owned();
    assert_eq!(stdout, "65534\n65534\n");
    assert!(String::from_utf8_lossy(&told.stderr).contains("Permission denied"));

    let request = pb::StartRequest { user: "12345".into(), ..shell("id -u; pwd") };
    let told = client.exec(request).await.expect("exec").rest().await;
    assert_eq!(told.stdout, b"12345\n/\n");

    let private = tempfile::tempdir().expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(private.path(), mode).expect("chmod");
    let request = pb::StartRequest {
        user: "nobody".into(),
        cwd: private.path().to_string_lossy().into_owned(),
        ..shell("true")
    };
    let refused = client.start(request).await.expect_err("not theirs");
    assert_eq!((refused.code(), field(&refused)), (Code::InvalidArgument, Some("cwd")));
}

#[tokio::test]
async fn each_wrong_field_is_named_and_nothing_starts() {
    let mut client = Stand::start().await.client().await;
    let text = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
    let path = text.to_string_lossy().into_owned();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::write(&text, "not a program\n").expect("write");
    std::fs::set_permissions(&text, mode).expect("chmod");
    let argv = |argv: &[&str]| pb::StartRequest {
        argv: argv.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let env = |name: &str| vec![pb::EnvVar { name: name.into(), value: String::new() }];
    let size = |columns| Some(pb::PtySize { columns, rows: 24 });
    let cases = [
        (argv(&[]), "argv"),
        (argv(&["no-such-program-here"]), "argv"),
        (argv(&["./no-such-program-here"]), "argv"),
        (argv(&[&path]), "argv"),
        (pb::StartRequest { cwd: "/no/such/place".into(), ..shell("true") }, "cwd"),
        (pb::StartRequest { user: "no-such-user".into(), ..shell("true") }, "user"),
        (pb::StartRequest { env: env("A=B"), ..shell("true") }, "env"),
        (pb::StartRequest { tag: "123".into(), ..shell("true") }, "tag"),
        (pb::StartRequest { pty: size(0), ..shell("true") }, "pty"),
    ];
    for (request, expected) in cases {
        let refused = client.start(request.clone()).await.expect_err("must be refused");
        assert_eq!((refused.code(), field(&refused)), (Code::InvalidArgument, Some(expected)), "{request:?}");
    }
    let refused = client.start(argv(&["no-such-program-here"])).await.expect_err("must be refused");
    assert!(refused.message().contains("no program `no-such-program-here` on PATH"), "{}", refused.message());

    // One argument may have 128 KiB.
    let refused = client.start(argv(&["true", &"x".repeat(1 << 20)])).await.expect_err("too long");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(client.list().await.is_empty());
}

#[tokio::test]
async fn tags() {
    let mut client = Stand::start().await.client().await;
    let tagged = |line: &str| pb::StartRequest { tag: "web".into(), ..shell(line) };
    let first = client.start(tagged("exec sleep 1000")).await.expect("start");
    let refused = client.start(tagged("true")).await.expect_err("in use");
    assert_eq!((refused.code(), field(&refused)), (Code::AlreadyExists, Some("tag")));

    let signal = |signal: &str| pb::SignalRequest { selector: by_tag("web"), signal: signal.into() };
    client.processes.signal(with_token(signal("SIGTERM"))).await.expect("by its tag");
    assert_eq!(client.exited(first.pid).await.signal.as_deref(), Some("SIGTERM"));
    let second = client.start(tagged("exec sleep 1000")).await.expect("free again");
    let found = client.processes.signal(with_token(signal("SIGKILL"))).await.expect("the living one");
    assert_eq!(found.into_inner().process.map(|it| it.pid), Some(second.pid));

    let unnamed = client.start(shell("true")).await.expect("start");
    let digits = unnamed.tag.strip_prefix("proc-").expect("a tag of its own");
    assert!(digits.len() == 8 && u32::from_str_radix(digits, 16).is_ok(), "{digits}");
}

#[tokio::test]
async fn signals_reach_the_whole_group() {
    let mut client = Stand::start().await.client().await;
    let line = "sleep 1000 & a=$!; sleep 1000 & echo $a $!; wait";
    let mut reader = client.exec(shell(line)).await.expect("exec");
    let pid = reader.started().await.pid;
    let children = printed_pids(&mut reader).await;
    assert_eq!(children.len(), 2);

    for (signal, code) in [("SIGNOPE", Code::InvalidArgument), ("TERM", Code::InvalidArgument)] {
        assert_eq!(client.signal(pid, signal).await.expect_err(signal).code(), code);
    }
    client.signal(pid, "SIGTERM").await.expect("signal");
    assert_eq!(reader.rest().await.signal(), Some("SIGTERM"));
    until("the children are gone", async || children.iter().all(|&it| !lives(it)).then_some(())).await;

    client.exited(pid).await;
    let refused = client.signal(pid, "SIGTERM").await.expect_err("gone");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(client.signal(u32::MAX, "SIGTERM").await.expect_err("never there").code(), Code::NotFound);
    let nobody = pb::SignalRequest { selector: None, signal: "SIGTERM".into() };
    let refused = client.processes.signal(with_token(nobody)).await.expect_err("nobody named");
    assert_eq!(field(&refused), Some("selector"));
}

#[tokio::test]
async fn a_timeout_kills_the_whole_group() {
    let mut client = Stand::start().await.client().await;
    let request =
        pb::StartRequest { timeout_sec: 1, ..shell("trap '' TERM; (sleep 1000) & echo $!; sleep 1000; :") };
    let mut reader = client.exec(request).await.expect("exec");
    let children = printed_pids(&mut reader).await;
    assert_eq!(reader.rest().await.signal(), Some("SIGKILL"));
    until("the children are gone", async || children.iter().all(|&it| !lives(it)).then_some(())).await;
}

#[tokio::test]
async fn a_timeout_kills_what_a_leader_left_behind() {
    let mut client = Stand::start().await.client().await;
    // It says by itself that it outlived its leader: who looks from outside may be late.
    let left_behind = tempfile::NamedTempFile::new().expect("a file");
    let line = format!(
        "(while :; do kill -0 $$ || echo alone >>{}; sleep 0.05; done) 2>/dev/null & echo $!; exit 5",
        left_behind.path().display()
    );
    let request = pb::StartRequest { timeout_sec: 2, ..shell(&line) };
    let told = client.exec(request).await.expect("exec").rest().await;
    assert_eq!(told.code(), Some(5), "the leader ended by itself");
    let child: u32 = String::from_utf8_lossy(&told.stdout).trim().parse().expect("a pid");
    until("the child is gone", async || (!lives(child)).then_some(())).await;
    let said = std::fs::read_to_string(&left_behind).expect("the file");
    assert!(said.starts_with("alone\n"), "it went with its leader");
}

#[tokio::test]
async fn exits_and_zombies() {
    let mut client = Stand::start().await.client().await;
    for (line, code, signal) in
        [("exit 0", Some(0), None), ("exit 255", Some(255), None), ("kill -SEGV $$", None, Some("SIGSEGV"))]
    {
        let told = client.exec(shell(line)).await.expect("exec").rest().await;
        assert_eq!((told.code(), told.signal()), (code, signal), "{line}");
        let pid = told.started.expect("started").pid;
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "reaped");
    }
}

#[tokio::test]
async fn a_process_outlives_its_reader_and_can_be_followed() {
    let mut client = Stand::start().await.client().await;
    let mut reader = client.exec(shell("echo one; read x; echo $x")).await.expect("exec");
    let pid = reader.started().await.pid;
    reader.next().await.expect("the first line");
    drop(reader);
    let mut reader = client.follow(pid, from_stdout(4)).await.expect("follow");
    client.write(pid, 0, b"two\n").await.expect("write");
    assert_eq!(reader.rest().await.stdout, b"two\n");
}

#[tokio::test]
async fn many_at_once() {
    let client = Stand::start().await.client().await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..60 {
        let mut client = client.clone();
        calls.spawn(async move {
            let told = client.exec(shell(&format!("echo {number}"))).await.expect("exec").rest().await;
            assert_eq!(told.stdout, format!("{number}\n").as_bytes());
        });
    }
    let all = async { while calls.join_next().await.is_some_and(|it| it.map(|()| true).expect("join")) {} };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("in time");
    let selector = by_pid(1);
    let request = pb::ResizeRequest { selector, size: Some(pb::PtySize { columns: 80, rows: 24 }) };
    let refused = client.clone().processes.resize(with_token(request)).await.expect_err("not ours");
    assert_eq!(refused.code(), Code::NotFound);
}
