//! Configuration and what follows a restore, on a machine that only remembers what it was told.

use std::net::Ipv4Addr;
use std::time::Duration;

use tonic::Code;
use wrenn_proto::envd::v1 as pb;

use crate::stand::{
    FakeSystem, Stand, TOKEN, by_pid, configuration, field, from_stdout, shell, with_this_token, with_token,
};

const NOW_NS: i64 = 1_800_000_000_000_000_000;

pub fn request() -> pb::PostRestoreRequest {
    pb::PostRestoreRequest {
        goes_on: false,
        entropy: vec![1; 64].into(),
        wall_clock_ns: NOW_NS,
        identity: Some(pb::Identity {
            capsule_id: "cl-2e5glxi4g3qnhwci95qev0cg0".into(),
            template_id: "tpl-0000000000000000000000000".into(),
            hostname: "capsule-1".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
        }),
        configuration: Some(pb::ConfigureRequest {
            env: vec![pb::EnvVar { name: "FROM".into(), value: "template".into() }],
            name_servers: vec!["10.0.0.53".into(), "1.1.1.1".into()],
            ..configuration()
        }),
    }
}

#[tokio::test]
async fn everything_is_done_and_told() {
    let stand = Stand::start().await;
    *stand.system.clock_ns.lock().expect("clock") = NOW_NS - 3_600_000_000_000;
    std::fs::write(stand.system.etc.path().join("hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\tgolden\n")
        .expect("hosts");
    let mut client = stand.stranger().await;
    let answer = client.guest.post_restore(request()).await.expect("post restore").into_inner();
    let clock_step_ns = 3_600_000_000_000;
    assert_eq!(answer, pb::PostRestoreResponse { clock_step_ns, reseeded: true, wall_clock_ns: NOW_NS });
    assert_eq!(stand.system.told(), ["entropy 64", "reseed", "clock", "hostname capsule-1"]);
    assert_eq!(stand.system.file("hostname").as_deref(), Some("capsule-1\n"));
    assert_eq!(stand.system.file("hosts").as_deref(), Some("127.0.0.1\tlocalhost\n127.0.1.1\tcapsule-1\n"));
    assert_eq!(stand.system.file("machine-id").as_deref(), Some("0123456789abcdef0123456789abcdef\n"));
    assert_eq!(
        stand.system.file("resolv.conf").as_deref(),
        Some("nameserver 10.0.0.53\nnameserver 1.1.1.1\n")
    );

    let line = "echo $WRENN_SANDBOX $WRENN_CAPSULE_ID $WRENN_TEMPLATE_ID $FROM";
    let told = client.exec(shell(line)).await.expect("the token is fixed").rest().await;
    assert_eq!(
        String::from_utf8_lossy(&told.stdout),
        "true cl-2e5glxi4g3qnhwci95qev0cg0 tpl-0000000000000000000000000 template\n"
    );
}

#[tokio::test]
async fn the_clock_is_stepped_and_nothing_else() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    *stand.system.clock_ns.lock().expect("clock") = NOW_NS;
    let told_before = stand.system.told();
    let mut step = async |by_ns| {
        let request = with_token(pb::StepClockRequest { by_ns });
        client.guest.step_clock(request).await.map(|answer| answer.into_inner().wall_clock_ns)
    };
    assert_eq!(step(0).await.expect("a reading"), NOW_NS);
    assert_eq!(stand.system.told(), told_before, "a reading has set something");
    assert_eq!(step(6_000_000).await.expect("forward"), NOW_NS + 6_000_000);
    assert_eq!(step(-7_000_000).await.expect("back"), NOW_NS - 1_000_000);
    for by_ns in [i64::MIN, i64::MAX] {
        let refused = step(by_ns).await.expect_err("no such time");
        assert_eq!((refused.code(), field(&refused)), (Code::InvalidArgument, Some("by_ns")));
    }
    assert_eq!(step(0).await.expect("a reading"), NOW_NS - 1_000_000);
    assert_eq!(stand.system.told().len(), told_before.len() + 2, "{:?}", stand.system.told());
}

#[tokio::test]
async fn nothing_is_changed_by_a_request_that_is_wrong() {
    let stand = Stand::start().await;
    let mut client = stand.stranger().await;
    let identity = |change: fn(&mut pb::Identity)| {
        let mut it = request();
        change(it.identity.as_mut().expect("identity"));
        it
    };
    let configured = |change: fn(&mut pb::ConfigureRequest)| {
        let mut it = request();
        change(it.configuration.as_mut().expect("configuration"));
        it
    };
    let cases = [
        (pb::PostRestoreRequest { entropy: vec![1; 63].into(), ..request() }, "entropy"),
        (pb::PostRestoreRequest { entropy: vec![1; 4097].into(), ..request() }, "entropy"),
        (pb::PostRestoreRequest { wall_clock_ns: 0, ..request() }, "wall_clock_ns"),
        (pb::PostRestoreRequest { identity: None, ..request() }, "identity"),
        (pb::PostRestoreRequest { configuration: None, ..request() }, "configuration"),
        (identity(|it| it.hostname = "two\nlines".into()), "identity.hostname"),
        (identity(|it| it.machine_id = "short".into()), "identity.machine_id"),
        (identity(|it| it.capsule_id = String::new()), "identity.capsule_id"),
        (configured(|it| it.name_servers = vec!["example".into()]), "name_servers"),
        (configured(|it| it.env[0].name = "A=B".into()), "env"),
        (configured(|it| it.token = bytes::Bytes::from_static(b"short")), "token"),
        (configured(|it| it.token = bytes::Bytes::new()), "token"),
    ];
    for (request, expected) in cases {
        let refused = client.guest.post_restore(request).await.expect_err(expected);
        assert_eq!((refused.code(), field(&refused)), (Code::InvalidArgument, Some(expected)));
    }
    assert!(stand.system.told().is_empty());
    assert_eq!(std::fs::read_dir(stand.system.etc.path()).expect("list").count(), 0);
    let health = client.guest.health(pb::HealthRequest {}).await.expect("health").into_inner();
    assert!(!health.configured);
}

#[tokio::test]
async fn files_that_a_guest_has_made_its_own_do_not_keep_it_from_going_on() {
    let stand = Stand::start().await;
    stand.stranger().await.guest.post_restore(request()).await.expect("the first life");
    // Nobody can replace a directory by a file.
    for name in ["resolv.conf", "hosts"] {
        let path = stand.system.etc.path().join(name);
        std::fs::remove_file(&path).expect("the file");
        std::fs::create_dir(&path).expect("a directory");
    }
    stand.stranger().await.guest.post_restore(with_token(request())).await.expect("another life");
    // A copy, however, must not take itself for what it was made from.
    let mut copy = request();
    copy.identity.as_mut().expect("identity").capsule_id = "cl-1e5glxi4g3qnhwci95qev0cg0".into();
    stand.stranger().await.guest.post_restore(with_token(copy.clone())).await.expect_err("hosts");
    std::fs::remove_dir(stand.system.etc.path().join("hosts")).expect("the directory");
    stand.stranger().await.guest.post_restore(with_token(copy)).await.expect("a copy");
}

#[tokio::test]
async fn a_generator_that_was_not_reseeded_is_not_called_so() {
    let system = FakeSystem { reseed_fails: true, ..FakeSystem::new() };
    let stand = Stand::start_with(system, Duration::from_secs(30), Ipv4Addr::LOCALHOST.into()).await;
    let answer = stand.stranger().await.guest.post_restore(request()).await.expect("an answer");
    assert!(!answer.into_inner().reseeded);
}

#[tokio::test]
async fn connections_of_an_earlier_life_end_and_their_readers_can_continue() {
    let stand = Stand::start().await;
    let mut before = stand.client().await;
    let mut reader = before.exec(shell("echo one; read x; echo two")).await.expect("exec");
    let pid = reader.started().await.pid;
    reader.next().await.expect("the first line");

    let mut after = stand.stranger().await;
    after.guest.post_restore(with_token(request())).await.expect("post restore");
    assert!(reader.next().await.is_err(), "the old stream is broken");
    let mut reader = after.follow(pid, from_stdout(4)).await.expect("follow");
    after.write(pid, 0, b"\n").await.expect("write");
    assert_eq!(reader.rest().await.stdout, b"two\n");

    // Those of processes to outside end with the life they began in, and that may stand still and be told again.
    let ended = || stand.system.told().iter().filter(|told| *told == "connections").count();
    assert_eq!(ended(), 1);
    let again = pb::PostRestoreRequest { goes_on: true, ..request() };
    for mut host in [after, stand.stranger().await] {
        host.guest.post_restore(with_token(again.clone())).await.expect("again");
    }
    assert_eq!(ended(), 1, "what was connected since then is of this life");
    stand.stranger().await.guest.post_restore(with_token(request())).await.expect("another life");
    assert_eq!(ended(), 2);
}

#[tokio::test]
async fn a_snapshot_is_prepared_by_a_sync() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    client.guest.prepare_snapshot(with_token(pb::PrepareSnapshotRequest {})).await.expect("prepare");
    assert_eq!(stand.system.told(), ["sync"]);
}

#[tokio::test]
async fn a_configuration_replaces_the_one_before() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let configured = |name: &str, user: &str| pb::ConfigureRequest {
        env: vec![pb::EnvVar { name: name.into(), value: "set".into() }],
        default_user: user.into(),
        ..configuration()
    };
    client.guest.configure(with_token(configured("A", "nobody"))).await.expect("configure");
    let told = client.exec(shell("echo $A $B; id -u")).await.expect("exec").rest().await;
    assert_eq!(told.stdout, b"set\n65534\n");
    client.guest.configure(with_token(configured("B", ""))).await.expect("configure");
    let told = client.exec(shell("echo $A$B; id -u")).await.expect("exec").rest().await;
    assert_eq!(told.stdout, b"set\n0\n");
    assert_eq!(stand.system.file("resolv.conf"), None, "no servers were given");
}

/// A restore from the snapshot of another machine, whose token is still in memory.
#[tokio::test]
async fn a_copy_gets_a_token_of_its_own() {
    const OWN: &[u8] = b"the token of the copy, not of its parent";
    let stand = Stand::start().await;
    let mut parent = stand.client().await;
    let mut reader = parent.exec(shell("echo one; read x; echo two")).await.expect("exec");
    let pid = reader.started().await.pid;
    reader.next().await.expect("the first line");

    let own = |env: &str| pb::PostRestoreRequest {
        configuration: Some(pb::ConfigureRequest {
            token: bytes::Bytes::from_static(OWN),
            env: vec![pb::EnvVar { name: env.into(), value: "set".into() }],
            ..Default::default()
        }),
        ..request()
    };
    let mut host = stand.stranger().await;
    // Only who has the token in memory may set another.
    for stranger in [with_this_token(OWN, own("A")), tonic::Request::new(own("A"))] {
        let refused = host.guest.post_restore(stranger).await.expect_err("not the parent's token");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let mut short = own("A");
    short.configuration.as_mut().expect("configuration").token = bytes::Bytes::from_static(b"short");
    let refused = host.guest.post_restore(with_token(short)).await.expect_err("too short");
    assert_eq!((refused.code(), field(&refused)), (Code::InvalidArgument, Some("token")));
    assert!(stand.system.told().is_empty());

    host.guest.post_restore(with_token(own("A"))).await.expect("post restore");
    assert!(reader.next().await.is_err(), "the connection of the parent's host is closed");
    for client in [&mut host, &mut stand.stranger().await] {
        let refused = client.processes.list(with_token(pb::ListRequest {})).await.expect_err("the old token");
        assert_eq!(refused.code(), Code::Unauthenticated);
        let refused = client.guest.post_restore(with_token(own("A"))).await.expect_err("the old token");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    // Once more, to set the clock more exactly, over the connection that is already there.
    host.guest.post_restore(with_this_token(OWN, own("B"))).await.expect("again, with the new token");
    let another = pb::ConfigureRequest { token: bytes::Bytes::from_static(TOKEN), ..Default::default() };
    let refused = host.guest.configure(with_this_token(OWN, another)).await.expect_err("another token");
    assert_eq!(refused.code(), Code::PermissionDenied);

    let follow = pb::FollowRequest { selector: by_pid(pid), after: Some(from_stdout(4)) };
    let mut rest = host.processes.follow(with_this_token(OWN, follow)).await.expect("follow").into_inner();
    assert!(rest.message().await.expect("an event").is_some(), "the parent's process lives on in the copy");
}

#[tokio::test]
async fn a_restore_s_environment_replaces_the_one_before() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let var = |name: &str| vec![pb::EnvVar { name: name.into(), value: "set".into() }];
    let before =
        pb::ConfigureRequest { env: var("SECRET"), default_user: "nobody".into(), ..configuration() };
    client.guest.configure(with_token(before)).await.expect("configure");
    let configuration = pb::ConfigureRequest { env: var("OWN"), ..configuration() };
    let restore = pb::PostRestoreRequest { configuration: Some(configuration), ..request() };
    client.guest.post_restore(with_token(restore)).await.expect("post restore");
    let told = client.exec(shell("echo \"$SECRET-$OWN\"; id -u")).await.expect("exec").rest().await;
    assert_eq!(String::from_utf8_lossy(&told.stdout), "-set\n0\n");
}
