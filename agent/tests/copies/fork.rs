//! Running copies of running capsules.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use futures_util::future::join_all;
use tonic::Code;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;
use wrenn_proto::envd::v1 as envd;

use super::support::calls::{capsule, create, new_id, run, sh};
use super::{COUNTER, assert_disk_is_of_the_same_moment, counted, nature, site};

fn fork(id: &str, children: &[String]) -> agent::ForkCapsuleRequest {
    agent::ForkCapsuleRequest {
        capsule_id: id.to_owned(),
        child_ids: children.to_vec(),
        inherit_secrets: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_copies_of_one_moment_are_ten_capsules() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let id = new_id();
    let mut request = create(&id);
    request.timeout_sec = 3000;
    request.env.push(envd::EnvVar { name: "KEY".into(), value: "of-the-parent".into() });
    request.secret_env = vec!["KEY".into()];
    client.create_capsule(request).await.unwrap();
    let counter = client.start_process(sh(&id, COUNTER)).await.unwrap().into_inner().process.unwrap().pid;
    let before = counted(&mut client, &id, counter, 5).await;

    let children: Vec<String> = (0..10).map(|_| new_id()).collect();
    let asked = Instant::now();
    let forked = client.fork_capsule(fork(&id, &children)).await.unwrap().into_inner();
    println!("ten copies after {:?}; the parent stood still for {} us", asked.elapsed(), forked.stopped_us);
    assert!(forked.stopped_us > 0);
    let ids: Vec<&str> = forked.capsules.iter().map(|child| child.id.as_str()).collect();
    assert_eq!(ids, children, "in the order that was asked for");
    for child in &forked.capsules {
        assert_eq!((child.state(), &child.parent_id), (CapsuleState::Running, &id));
        assert_eq!((child.timeout_sec, child.memory_mib), (3000, 256));
    }
    assert_eq!(super::support::names(&site.directory.join("data/forks")), Vec::<std::path::PathBuf>::new());

    let natures = children.iter().map(|child| {
        let mut client = client.clone();
        async move {
            let count = counted(&mut client, child, counter, before).await;
            (count, nature(&mut client, child).await)
        }
    });
    let natures = join_all(natures).await;
    for (child, (_, nature)) in children.iter().zip(&natures) {
        assert_eq!((&nature.hostname, &nature.capsule_id), (child, child));
    }
    let randoms: HashSet<_> = natures.iter().map(|(_, nature)| &nature.random).collect();
    let machines: HashSet<_> = natures.iter().map(|(_, nature)| &nature.machine_id).collect();
    assert_eq!((randoms.len(), machines.len()), (10, 10));
    let tokens: HashSet<String> = site.records().iter().map(|record| record["token"].to_string()).collect();
    assert_eq!(tokens.len(), 11);
    assert_disk_is_of_the_same_moment(&mut client, &children[3], counter).await;
    let (output, _) = run(&mut client, &children[3], "echo $GREETING,$KEY").await;
    assert_eq!(output, "hello,\n", "what was secret stays with the parent");
    counted(&mut client, &id, counter, before + 10).await;

    let again = client.fork_capsule(fork(&id, &children)).await.unwrap().into_inner();
    assert_eq!(again.capsules.iter().map(|child| child.revision).collect::<Vec<_>>(), [2; 10]);
    assert_eq!(site.vmms().len(), 11, "no copy was made twice");

    for child in &children {
        client.destroy_capsule(capsule(child)).await.unwrap();
    }
    client.destroy_capsule(capsule(&id)).await.unwrap();
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_paused_capsule_lives_by_itself() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let (id, child) = (new_id(), new_id());
    let mut request = create(&id);
    request.env.push(envd::EnvVar { name: "KEY".into(), value: "of-the-parent".into() });
    request.secret_env = vec!["KEY".into()];
    client.create_capsule(request).await.unwrap();
    let counter = client.start_process(sh(&id, COUNTER)).await.unwrap().into_inner().process.unwrap().pid;
    let before = counted(&mut client, &id, counter, 5).await;
    client.pause_capsule(capsule(&id)).await.unwrap();

    let request =
        agent::ForkCapsuleRequest { inherit_secrets: true, ..fork(&id, std::slice::from_ref(&child)) };
    let forked = client.fork_capsule(request).await.unwrap().into_inner();
    assert_eq!(forked.stopped_us, 0);
    assert_eq!(client.get_capsule(capsule(&id)).await.unwrap().into_inner().state(), CapsuleState::Paused);
    client.destroy_capsule(capsule(&id)).await.unwrap();

    let count = counted(&mut client, &child, counter, before + 1).await;
    let (output, _) = run(&mut client, &child, "echo $KEY").await;
    assert_eq!(output, "of-the-parent\n", "it was asked for");

    // Through a pause, another agent, and a copy of its own.
    client.pause_capsule(capsule(&child)).await.unwrap();
    client.resume_capsule(capsule(&child)).await.unwrap();
    agent.stop().await;
    let (agent, mut client) = site.start(&[]).await;
    let adopted = client.get_capsule(capsule(&child)).await.unwrap().into_inner();
    assert_eq!((adopted.state(), &adopted.parent_id), (CapsuleState::Running, &id));
    let grandchild = new_id();
    client.fork_capsule(fork(&child, std::slice::from_ref(&grandchild))).await.unwrap();
    counted(&mut client, &grandchild, counter, count + 1).await;
    assert_disk_is_of_the_same_moment(&mut client, &grandchild, counter).await;
    let (output, _) = run(&mut client, &grandchild, "echo $KEY").await;
    assert_eq!(output, "\n", "a secret stays one");

    for id in [&child, &grandchild] {
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_cannot_all_be_made_are_not_made_at_all() {
    let (_turn, site) = site().await;
    let few = [("WRENN_SLOTS", "30141-30143"), ("WRENN_SLOT_POOL", "0")];
    let (agent, mut client) = site.start(&few).await;
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();
    let counter = client.start_process(sh(&id, COUNTER)).await.unwrap().into_inner().process.unwrap().pid;

    let children: Vec<String> = (0..4).map(|_| new_id()).collect();
    let status = client.fork_capsule(fork(&id, &children)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(children.iter().any(|child| status.message().contains(child)), "{}", status.message());
    for child in &children {
        let gone = client.get_capsule(capsule(child)).await.unwrap().into_inner();
        assert_eq!(gone.state(), CapsuleState::Stopped);
    }
    let names = |of: &str| super::support::names(&site.directory.join("data").join(of)).len();
    assert_eq!((names("capsules"), names("forks"), site.vmms().len()), (1, 0, 1));
    let count = counted(&mut client, &id, counter, 1).await;
    counted(&mut client, &id, counter, count + 1).await;

    // As many as there is room for can be made, by the same names.
    client.fork_capsule(fork(&id, &children[..2])).await.unwrap();
    for child in &children[..2] {
        counted(&mut client, child, counter, 1).await;
    }

    let strangers = [new_id()];
    client.destroy_capsule(capsule(&children[1])).await.unwrap();
    client.create_capsule(create(&strangers[0])).await.unwrap();
    for (children, wrong) in
        [(&children[1..3], "id"), (strangers.as_slice(), "id"), (&children[..0], "count")]
    {
        let status = client.fork_capsule(fork(&id, children)).await.unwrap_err();
        let field = status.metadata().get(wrenn_proto::FIELD).unwrap().to_str().unwrap();
        assert_eq!((status.code(), field), (Code::InvalidArgument, wrong));
    }
    let status = client.fork_capsule(fork(&new_id(), &[new_id()])).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    for id in children[..1].iter().chain(&strangers).chain([&id]) {
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}
