//! A real agent with real microVMs, over its own contract. Run one after the other: they share a directory,
//! and with it the golden snapshot.

#[expect(dead_code, reason = "shared with tests that want more of it")]
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use support::calls::{capsule, capsules, collect, create, new_id, only, run, sh, soon, until};
use support::{CONTROL_PLANE, Site, Turn, end};
use tonic::Code;
use tonic::transport::Channel;
use wrenn_agent::ids::TemplateId;
use wrenn_proto::CAUSE;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;
use wrenn_proto::agent::v1::agent_client::AgentClient;
use wrenn_proto::envd::v1 as envd;
use wrenn_proto::envd::v1::process_event::Event;

async fn site() -> (Turn, Site) {
    support::site("microvm", "30101-30120").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_lives_is_paused_resumed_and_destroyed() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let id = new_id();

    let made = client.create_capsule(create(&id)).await.unwrap().into_inner();
    assert_eq!((made.state(), made.id.as_str()), (CapsuleState::Running, id.as_str()));
    let again = client.create_capsule(create(&id)).await.unwrap().into_inner();
    assert_eq!(again.started_at_ns, made.started_at_ns, "the same capsule");

    let (output, exited) = run(&mut client, &id, "echo $GREETING from $(hostname); exit 3").await;
    assert_eq!(output, format!("hello from {id}\n"));
    assert_eq!(exited.exit_code, Some(3));

    let counting = sh(&id, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done");
    let started = client.start_process(counting).await.unwrap().into_inner().process.unwrap();
    let selector = Some(envd::Selector { by: Some(envd::selector::By::Pid(started.pid)) });
    let follow = |after| agent::FollowProcessRequest {
        capsule_id: id.clone(),
        process: Some(envd::FollowRequest { selector: selector.clone(), after }),
    };
    let mut following = client.follow_process(follow(None)).await.unwrap().into_inner();

    let paused = client.pause_capsule(capsule(&id)).await.unwrap().into_inner();
    assert_eq!(paused.state(), CapsuleState::Paused);
    assert!(site.vmms().is_empty());
    let mut read = 0;
    let end = loop {
        match soon("the end of a life", following.message()).await {
            Ok(Some(envd::ProcessEvent { event: Some(Event::Output(chunk)) })) => {
                assert_eq!(chunk.sequence, read, "nothing missed");
                read += chunk.data.len() as u64;
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("the process did not end"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (end.code(), end.metadata().get(CAUSE).unwrap().as_bytes()),
        (Code::Unavailable, &b"CAPSULE_PAUSED"[..])
    );
    let refused = client.exec(sh(&id, "true")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(client.pause_capsule(capsule(&id)).await.unwrap().into_inner().state(), CapsuleState::Paused);

    let resumed = client.resume_capsule(capsule(&id)).await.unwrap().into_inner();
    assert_eq!(resumed.state(), CapsuleState::Running);
    let cursor = envd::OutputCursor { stdout: Some(read), ..Default::default() };
    let mut following = client.follow_process(follow(Some(cursor))).await.unwrap().into_inner();
    until("the process counts on where it was", async || {
        match following.message().await.unwrap().unwrap().event {
            Some(Event::Output(chunk)) => {
                assert_eq!(chunk.sequence, read);
                true
            }
            other => {
                assert!(matches!(other, Some(Event::Started(_))), "{other:?}");
                false
            }
        }
    })
    .await;
    drop(following);

    client.destroy_capsule(capsule(&id)).await.unwrap();
    client.destroy_capsule(capsule(&id)).await.unwrap();
    let gone = client.get_capsule(capsule(&id)).await.unwrap().into_inner();
    assert_eq!((gone.state(), gone.cause.unwrap().code.as_str()), (CapsuleState::Stopped, "DESTROYED"));
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_outlives_its_agent() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();
    let sleeper = client.start_process(sh(&id, "sleep 1000")).await.unwrap().into_inner().process.unwrap();
    let vmm = site.vmms();
    assert_eq!(vmm.len(), 1);
    agent.stop().await;
    assert_eq!(site.vmms(), vmm, "it runs on");

    let (agent, mut client) = site.start(&[]).await;
    let adopted = client.get_capsule(capsule(&id)).await.unwrap().into_inner();
    assert_eq!(adopted.state(), CapsuleState::Running);
    let processes = only(client.list_processes(capsules(&[&id])).await).await.processes;
    assert!(processes.iter().any(|process| process.pid == sleeper.pid && process.running), "{processes:?}");
    client.pause_capsule(capsule(&id)).await.unwrap();
    agent.stop().await;

    let (agent, mut client) = site.start(&[]).await;
    assert_eq!(
        client.resume_capsule(capsule(&id)).await.unwrap().into_inner().state(),
        CapsuleState::Running
    );
    client.destroy_capsule(capsule(&id)).await.unwrap();
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_is_killed_takes_nothing_with_it_but_its_capsule() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();
    let mut events = client.exec(sh(&id, "echo up; sleep 1000")).await.unwrap().into_inner();
    while !matches!(
        soon("its first word", events.message()).await.unwrap().unwrap().event,
        Some(Event::Output(_))
    ) {}
    let killed = Instant::now();
    end(site.vmm()).unwrap();
    let (_, exited) = collect(events).await;
    let cause = exited.cause.unwrap();
    assert_eq!(cause.code, "VMM_DIED");
    assert!(cause.message.contains("SIGKILL"), "{}", cause.message);
    until("the capsule is stopped", async || {
        client.get_capsule(capsule(&id)).await.unwrap().into_inner().state() == CapsuleState::Stopped
    })
    .await;
    println!("stopped {:?} after the kill", killed.elapsed());
    assert_eq!(client.exec(sh(&id, "true")).await.unwrap_err().code(), Code::FailedPrecondition);
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_capsule_is_paused_and_one_in_use_is_not() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let (idle, busy) = (new_id(), new_id());
    client.create_capsule(create(&busy)).await.unwrap();
    let awake = agent::StartProcessRequest { keep_awake: true, ..sh(&busy, "sleep 1000") };
    client.start_process(awake).await.unwrap();
    let shortly = agent::SetTimeoutRequest { capsule_id: busy.clone(), timeout_sec: 1 };
    client.set_timeout(shortly).await.unwrap();
    let since = Instant::now();
    client.create_capsule(agent::CreateCapsuleRequest { timeout_sec: 1, ..create(&idle) }).await.unwrap();
    until("the idle one is paused", async || {
        client.get_capsule(capsule(&idle)).await.unwrap().into_inner().state() == CapsuleState::Paused
    })
    .await;
    let cause = client.get_capsule(capsule(&idle)).await.unwrap().into_inner().cause.unwrap();
    assert_eq!(cause.code, "IDLE_TIMEOUT");
    tokio::time::sleep(Duration::from_secs(3).saturating_sub(since.elapsed())).await;
    assert_eq!(client.get_capsule(capsule(&busy)).await.unwrap().into_inner().state(), CapsuleState::Running);
    for id in [&idle, &busy] {
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_said_and_changes_nothing() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let field = |status: &tonic::Status| {
        status.metadata().get(wrenn_proto::FIELD).unwrap().to_str().unwrap().to_owned()
    };

    let id = new_id();
    let unknown =
        agent::CreateCapsuleRequest { template_id: TemplateId::from_u128(99).to_string(), ..create(&id) };
    let status = client.create_capsule(unknown).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::NotFound, "template"));
    let status =
        client.create_capsule(agent::CreateCapsuleRequest { vcpus: 0, ..create(&id) }).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "vcpus"));
    let status =
        client.create_capsule(agent::CreateCapsuleRequest { disk_mib: 1, ..create(&id) }).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "diskMib"));
    let status = client.get_capsule(capsule(&new_id())).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    // A host's own certificate does not make it the control plane.
    for (name, usage) in [
        ("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth),
        ("127.0.0.1", ExtendedKeyUsagePurpose::ClientAuth),
        (CONTROL_PLANE, ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let impostor = site.authority.issue(name, usage);
        let refused = match site.authority.connect(agent.address(), &impostor).await {
            Ok(channel) => AgentClient::new(channel).info(agent::InfoRequest {}).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "{name} was let in");
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

/// The template's image is made larger when its golden snapshot is booted, and every capsule of that size starts with what
/// the guest then grew.
#[tokio::test(flavor = "multi_thread")]
async fn a_larger_disk_is_a_larger_file_system() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let mut sizes = Vec::new();
    for disk_mib in [1024, 3072] {
        // The first boots, the second is a restore of what that left.
        for _ in 0..2 {
            let id = new_id();
            client.create_capsule(agent::CreateCapsuleRequest { disk_mib, ..create(&id) }).await.unwrap();
            let total = file_system_mib(&mut client, &id).await;
            assert!(
                total > u64::from(disk_mib) * 8 / 10 && total <= disk_mib.into(),
                "{total} of {disk_mib} MiB"
            );
            sizes.push(total);
            if disk_mib == 3072 && sizes.len() == 4 {
                holds_what_the_smaller_could_not(&mut client, &id).await;
            }
            client.destroy_capsule(capsule(&id)).await.unwrap();
        }
    }
    assert_eq!((sizes[0], sizes[2]), (sizes[1], sizes[3]));
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

async fn file_system_mib(client: &mut AgentClient<Channel>, id: &str) -> u64 {
    let (output, exited) = run(client, id, "df -P -k / | tail -n 1").await;
    assert_eq!(exited.exit_code, Some(0), "{output}");
    let kib: u64 = output.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size");
    kib >> 10
}

/// Also over a pause: what lies beyond the end of the smaller disk is read again from the disk.
async fn holds_what_the_smaller_could_not(client: &mut AgentClient<Channel>, id: &str) {
    let write = "fallocate -l 1468006400 /root/room && seq 1 200000 > /root/numbers && sync && \
                 wc -c < /root/room && md5sum < /root/numbers";
    let (written, exited) = run(client, id, write).await;
    assert_eq!(exited.exit_code, Some(0), "{written}");
    assert!(written.starts_with("1468006400\n"), "{written}");
    client.pause_capsule(capsule(id)).await.unwrap();
    client.resume_capsule(capsule(id)).await.unwrap();
    let again = "echo 3 > /proc/sys/vm/drop_caches; wc -c < /root/room; md5sum < /root/numbers";
    assert_eq!(run(client, id, again).await.0, written);
}
