//! Copies of a capsule that runs: templates made of it, and forks.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::counter::Counter;
use wrenn_tests::graphql::{Client, Exec, Failure};
use wrenn_tests::stack::Stack;

use super::identity::who;

const SNAPSHOT: &str = "mutation($id: ID!, $name: String!, $overwrite: Boolean) {
    snapshotCapsule(id: $id, name: $name, overwrite: $overwrite) { template { id name } } }";

/// What runs goes on in every capsule of the template, with the disk that belongs to it; the one it was taken of does
/// not notice; and none of them is another.
pub async fn a_snapshot_is_a_template(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let original = client.create(json!({ "memoryMib": 256 })).await?;
    let id = original.id;
    let mut counter = Counter::start(client, &id).await?;
    client.sh(&id, "echo on-disk > /root/file; echo in-memory > /run/file").await?;
    let first = who(client, &id).await?;
    let vmm = stack.vmm_of(&id);

    counter.check(client, &id).await?;
    let at_snapshot = counter;
    let template = client.snapshot(&id, "e2e-counting").await?;
    ensure!(template.name == "e2e-counting" && template.id.starts_with("tpl-"), "{template:?}");
    ensure!(client.template("e2e-counting").await?.as_ref() == Some(&template));
    ensure!(stack.vmm_of(&id) == vmm, "the snapshot replaced the VMM");
    ensure!(client.capsule(&id).await?.context("the capsule")?.state == "RUNNING");
    counter.goes_on(client, &id).await?;

    let mut different: Vec<BTreeSet<String>> =
        first.iter().map(|own| BTreeSet::from([own.clone()])).collect();
    let mut copies = Vec::new();
    for reference in [template.id.as_str(), template.name.as_str()] {
        let copy = client.create(json!({ "template": reference })).await?;
        ensure!(copy.template == template, "{copy:?}");
        ensure!((copy.vcpus, copy.memory_mib) == (original.vcpus, original.memory_mib), "{copy:?}");
        let mut copied = at_snapshot;
        copied.goes_on(client, &copy.id).await.context("what ran goes on in the copy")?;
        ensure!(client.sh(&copy.id, "cat /root/file /run/file").await? == "on-disk\nin-memory");
        for (known, own) in different.iter_mut().zip(who(client, &copy.id).await?) {
            ensure!(known.insert(own.clone()), "a copy shares `{own}` with another capsule");
        }
        copies.push(copy.id);
    }
    // What one of them writes is its own.
    client.sh(&copies[0], "echo changed > /root/file").await?;
    ensure!(client.sh(&copies[1], "cat /root/file").await? == "on-disk");
    ensure!(client.sh(&id, "cat /root/file").await? == "on-disk");

    // The template outlives what it was taken of, and a copy can be paused like any other.
    client.destroy(&id).await?;
    let last = client.create(json!({ "template": template.id })).await?.id;
    let mut copied = at_snapshot;
    copied.goes_on(client, &last).await?;
    client.pause(&last).await?;
    client.resume(&last).await?;
    copied.goes_on(client, &last).await?;
    for id in copies.iter().chain([&last]) {
        client.destroy(id).await?;
    }
    Ok(())
}

/// Memory and CPUs of a snapshot are what they are; names are names; one that is taken is not taken away unasked.
pub async fn snapshots_are_refused_with_reasons(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    for name in ["", "Upper", "../x", "a b"] {
        let refused = client.refused(SNAPSHOT, json!({ "id": id, "name": name })).await?;
        ensure!(refused.first().code() == "INVALID_INPUT", "{name:?}: {refused}");
        ensure!(refused.first().field() == Some("name"), "{name:?}: {refused}");
    }
    let template = client.snapshot(&id, "e2e-refusals").await?;
    let refused = client.refused(SNAPSHOT, json!({ "id": id, "name": "e2e-refusals" })).await?;
    ensure!(refused.first().code() == "CONFLICT", "{refused}");
    for (field, value) in [("memoryMib", 1024), ("vcpus", 2)] {
        let input = json!({ "template": template.id, field: value });
        let refused = client.create_as_answered(input).await.err().context("another size was let through")?;
        let refused = refused.downcast::<Failure>()?;
        ensure!(refused.first().code() == "INVALID_INPUT", "{refused}");
        ensure!(refused.first().field() == Some(field), "{refused}");
    }
    // A paused capsule can be made a template as well.
    client.sh(&id, "echo later > /root/file").await?;
    client.pause(&id).await?;
    let newer = client.snapshot(&id, "e2e-refusals").await?;
    ensure!(client.capsule(&id).await?.context("the capsule")?.state == "PAUSED");
    let copy = client.create(json!({ "template": newer.name })).await?.id;
    ensure!(client.sh(&copy, "cat /root/file").await? == "later");
    // Another team has no use of it.
    let foreign = stack.platform().create_as_answered(json!({ "template": newer.id })).await;
    let foreign = foreign.err().context("another team's template was given out")?.downcast::<Failure>()?;
    ensure!(foreign.first().code() == "NOT_FOUND", "{foreign}");
    client.destroy(&copy).await?;
    client.destroy(&id).await?;
    Ok(())
}

const COPIES: usize = 3;

const PARENT: &str = "query($id: ID!) { capsule(id: $id) { parent { id } } }";

/// Writes every number once, to its memory's log and to its disk's: where disk and memory are not of the same moment,
/// a number is missing in a copy, or is there twice.
const LOGGING: &str =
    "i=0; while :; do i=$((i+1)); echo $i >> /run/log; echo $i >> /root/log; sleep 0.05; done";

/// All copies begin where the parent was at one moment, and go on from there by themselves.
pub async fn forks_begin_where_their_parent_was(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let labels = json!({ "test": "forked" });
    let id = client.create(json!({ "labels": labels })).await?.id;
    let vmm = stack.vmm_of(&id);
    let mut counter = Counter::start(client, &id).await?;
    client.start(Exec::shell(&id, LOGGING)).await?;
    counter.goes_on(client, &id).await?;
    let at_fork = counter;
    let copies = client.fork(&id, COPIES).await?;

    ensure!(stack.vmm_of(&id) == vmm, "the fork replaced the parent's VMM");
    counter.goes_on(client, &id).await.context("the parent")?;
    let mut ids = BTreeSet::from([id.clone()]);
    let mut different: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 4];
    for copy in &copies {
        ensure!(ids.insert(copy.id.clone()), "an id twice: {}", copy.id);
        ensure!(copy.labels == labels, "{copy:?}");
        let known: Value = client.get("capsule", PARENT, json!({ "id": copy.id })).await?;
        ensure!(known["parent"]["id"] == id, "{known} is not the parent of {}", copy.id);
        let mut copied = at_fork;
        copied.goes_on(client, &copy.id).await.with_context(|| format!("the copy {}", copy.id))?;
    }
    for id in &ids {
        for log in ["/run/log", "/root/log"] {
            in_order(client, id, log).await?;
        }
        for (known, own) in different.iter_mut().zip(who(client, id).await?) {
            ensure!(known.insert(own.clone()), "{id} shares `{own}` with another copy");
        }
    }

    // From here on they have nothing to do with each other.
    let [first, second, _] = &copies[..] else { anyhow::bail!("{COPIES} copies are wanted") };
    client.sh(&first.id, "echo mine > /root/own").await?;
    ensure!(client.exec(Exec::shell(&second.id, "test -e /root/own")).await?.exit_code == Some(1));
    client.destroy(&id).await?;
    let mut copied = at_fork;
    client.pause(&first.id).await?;
    client.resume(&first.id).await?;
    copied.goes_on(client, &first.id).await.context("a copy whose parent is gone")?;
    // A copy can be forked too, and so can a paused one.
    client.pause(&second.id).await?;
    let grandchild = client.fork(&second.id, 1).await?.remove(0);
    copied = at_fork;
    copied.goes_on(client, &grandchild.id).await.context("a copy of a copy")?;
    ensure!(client.capsule(&second.id).await?.context("the paused copy")?.state == "PAUSED");
    for copy in copies.iter().chain([&grandchild]) {
        client.destroy(&copy.id).await?;
    }
    Ok(())
}

async fn in_order(client: &Client, id: &str, log: &str) -> Result<()> {
    let wrong =
        client.sh(id, &format!("awk '$1 != NR {{ print NR, $1; exit }}' {log}; test -s {log}")).await?;
    ensure!(wrong.is_empty(), "{log} of {id} breaks off at line and number {wrong}");
    Ok(())
}

pub async fn forks_are_refused_with_reasons(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let labels = json!({ "test": "unforked" });
    let id = client.create(json!({ "labels": labels })).await?.id;
    let query = "mutation($id: ID!, $count: Int) { forkCapsule(id: $id, count: $count) { capsules { id } } }";
    for count in [0, -1, 100_000] {
        let refused = client.refused(query, json!({ "id": id, "count": count })).await?;
        ensure!(refused.first().code() == "INVALID_INPUT", "{count}: {refused}");
        ensure!(refused.first().field() == Some("count"), "{count}: {refused}");
    }
    let foreign = stack.platform().refused(query, json!({ "id": id, "count": 1 })).await?;
    ensure!(foreign.first().code() == "NOT_FOUND", "{foreign}");
    client.destroy(&id).await?;
    let refused = client.refused(query, json!({ "id": id, "count": 1 })).await?;
    ensure!(refused.first().code() == "FAILED_PRECONDITION", "{refused}");
    let left = client.capsules(json!({ "labels": labels })).await?;
    ensure!(left.is_empty(), "refused forks left capsules behind: {left:?}");
    Ok(())
}
