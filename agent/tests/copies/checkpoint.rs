//! Templates that are snapshots.

use std::collections::HashSet;

use tonic::Code;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;
use wrenn_proto::envd::v1 as envd;
use wrenn_proto::envd::v1::process_event::Event;

use super::support::calls::{capsule, create, new_id, run, sh, soon};
use super::support::names;
use super::{COUNTER, assert_disk_is_of_the_same_moment, counted, nature, new_template, site};

fn snapshot(id: &str, template: &str) -> agent::SnapshotCapsuleRequest {
    agent::SnapshotCapsuleRequest { capsule_id: id.to_owned(), template_id: template.to_owned() }
}

fn from(template: &str, id: &str) -> agent::CreateCapsuleRequest {
    agent::CreateCapsuleRequest { template_id: template.to_owned(), from_snapshot: true, ..create(id) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_capsule_goes_on_and_copies_start_from_its_moment() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let (id, template) = (new_id(), new_template());
    let mut request = create(&id);
    request.env.push(envd::EnvVar { name: "KEY".into(), value: "of-the-parent".into() });
    request.secret_env = vec!["KEY".into()];
    client.create_capsule(request).await.unwrap();
    let counter = client.start_process(sh(&id, COUNTER)).await.unwrap().into_inner().process.unwrap().pid;
    let before = counted(&mut client, &id, counter, 5).await;

    // A stream that is open goes on over the moment.
    let mut stream =
        client.exec(sh(&id, "while :; do echo on; sleep 0.05; done")).await.unwrap().into_inner();
    let made = client.snapshot_capsule(snapshot(&id, &template)).await.unwrap().into_inner();
    println!("stood still for {} us, {} KiB written", made.stopped_us, made.written_bytes >> 10);
    assert_eq!((made.vcpus, made.memory_mib, made.disk_mib), (1, 256, 1024));
    assert!(made.stopped_us > 0 && made.written_bytes > 0);
    let again = client.snapshot_capsule(snapshot(&id, &template)).await.unwrap().into_inner();
    assert_eq!(again, made, "the same snapshot");
    run(&mut client, &id, "echo later > /root/later; echo later > /run/later; sync").await;
    counted(&mut client, &id, counter, before + 40).await;
    let mut read = 0;
    while read < 40 {
        let event =
            soon("the stream goes on", stream.message()).await.unwrap().expect("the stream goes on").event;
        if let Some(Event::Output(chunk)) = event {
            read += chunk.data.len() / 3;
        }
    }
    drop(stream);

    let copies = [new_id(), new_id()];
    let mut natures = HashSet::from([nature(&mut client, &id).await]);
    for copy in &copies {
        let made = client.create_capsule(from(&template, copy)).await.unwrap().into_inner();
        assert_eq!((made.state(), made.parent_id.as_str()), (CapsuleState::Running, ""));
        counted(&mut client, copy, counter, before).await;
        let (later, _) = run(&mut client, copy, "cat /root/later /run/later 2>/dev/null").await;
        assert_eq!(later, "", "what the parent did after the moment is not in a copy");
        let nature = nature(&mut client, copy).await;
        assert_eq!((&nature.hostname, &nature.capsule_id), (copy, copy));
        natures.insert(nature);
        let (output, _) = run(&mut client, copy, "echo $GREETING,$KEY").await;
        assert_eq!(output, "hello,\n", "what was secret stays with the parent");
        assert_disk_is_of_the_same_moment(&mut client, copy, counter).await;
    }
    assert_eq!(natures.len(), 3);
    let all = |part: fn(&super::Nature) -> &String| natures.iter().map(part).collect::<HashSet<_>>().len();
    assert_eq!((all(|one| &one.random), all(|one| &one.machine_id)), (3, 3));
    let tokens: HashSet<String> = site.records().iter().map(|record| record["token"].to_string()).collect();
    assert_eq!(tokens.len(), 3);

    // A copy outlives its template, and is paused and resumed like any other.
    client.delete_template(agent::DeleteTemplateRequest { template_id: template.clone() }).await.unwrap();
    client.delete_template(agent::DeleteTemplateRequest { template_id: template.clone() }).await.unwrap();
    assert_eq!(names(&site.directory.join("data/templates")), Vec::<std::path::PathBuf>::new());
    let status = client.create_capsule(from(&template, &new_id())).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let count = counted(&mut client, &copies[0], counter, 1).await;
    client.pause_capsule(capsule(&copies[0])).await.unwrap();
    client.resume_capsule(capsule(&copies[0])).await.unwrap();
    counted(&mut client, &copies[0], counter, count + 1).await;

    for id in copies.iter().chain([&id]) {
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), std::collections::BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_is_copied_without_being_resumed() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let (id, template, copy) = (new_id(), new_template(), new_id());
    client.create_capsule(create(&id)).await.unwrap();
    let counter = client.start_process(sh(&id, COUNTER)).await.unwrap().into_inner().process.unwrap().pid;
    let before = counted(&mut client, &id, counter, 5).await;
    client.pause_capsule(capsule(&id)).await.unwrap();
    let made = client.snapshot_capsule(snapshot(&id, &template)).await.unwrap().into_inner();
    assert_eq!(made.stopped_us, 0);
    assert_eq!(client.get_capsule(capsule(&id)).await.unwrap().into_inner().state(), CapsuleState::Paused);

    let taken = client.snapshot_capsule(snapshot(&new_id(), &template)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    client.destroy_capsule(capsule(&id)).await.unwrap();
    // The agent that makes a copy need not be the one that made the template.
    agent.stop().await;
    let (agent, mut client) = site.start(&[]).await;
    client.create_capsule(from(&template, &copy)).await.unwrap();
    counted(&mut client, &copy, counter, before + 1).await;
    assert_disk_is_of_the_same_moment(&mut client, &copy, counter).await;

    let field = |status: &tonic::Status| {
        status.metadata().get(wrenn_proto::FIELD).unwrap().to_str().unwrap().to_owned()
    };
    for (request, wrong) in [
        (agent::CreateCapsuleRequest { vcpus: 2, ..from(&template, &new_id()) }, "vcpus"),
        (agent::CreateCapsuleRequest { memory_mib: 512, ..from(&template, &new_id()) }, "memoryMib"),
        (agent::CreateCapsuleRequest { disk_mib: 2048, ..from(&template, &new_id()) }, "diskMib"),
    ] {
        let status = client.create_capsule(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, wrong));
    }
    let status = client.snapshot_capsule(snapshot(&new_id(), &new_template())).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(names(&site.directory.join("data/templates")).len(), 1, "nothing is left of what failed");

    client.delete_template(agent::DeleteTemplateRequest { template_id: template }).await.unwrap();
    client.destroy_capsule(capsule(&copy)).await.unwrap();
    agent.stop().await;
    assert_eq!(site.leftovers(), std::collections::BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_vmm_is_refused_with_the_reason() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let (id, template) = (new_id(), new_template());
    client.create_capsule(create(&id)).await.unwrap();
    client.snapshot_capsule(snapshot(&id, &template)).await.unwrap();
    let manifest = site.directory.join("data/templates").join(&template).join("manifest.json");
    rewrite(&manifest, |manifest| manifest["identity"]["version"] = "0.9".into());
    let status = client.create_capsule(from(&template, &new_id())).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("VMM version 0.9"), "{}", status.message());
    assert_eq!(site.vmms().len(), 1);

    client.delete_template(agent::DeleteTemplateRequest { template_id: template }).await.unwrap();
    client.destroy_capsule(capsule(&id)).await.unwrap();
    agent.stop().await;
    assert_eq!(site.leftovers(), std::collections::BTreeSet::new());
    site.close().await;
}

/// Changes a manifest, and the digest in its first line with it.
fn rewrite(manifest: &std::path::Path, change: impl FnOnce(&mut serde_json::Value)) {
    use sha2::Digest as _;
    let text = std::fs::read_to_string(manifest).unwrap();
    let (first, body) = text.split_once('\n').unwrap();
    let mut value = serde_json::from_str(body).unwrap();
    change(&mut value);
    let body = serde_json::to_string_pretty(&value).unwrap();
    let digest: String = sha2::Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let head = first.rsplit_once(' ').unwrap().0;
    std::fs::write(manifest, format!("{head} {digest}\n{body}\n")).unwrap();
}
