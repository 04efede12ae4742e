//! Running copies of capsules.

use serde_json::json;
use tonic::Status;
use wrenn_entities::capsule::CapsuleState;
use wrenn_proto::agent::v1::CapsuleState as OnHost;
use wrenn_schema::jobs::Supervisor;

use crate::{
    agent::arrived,
    on_both_databases,
    world::{CREATE, World, id_of, refused},
};

on_both_databases!(
    copies_run_beside_their_parent,
    all_of_them_or_none,
    a_repeat_is_the_same_copies,
    what_was_cut_off_is_settled_by_the_host,
    parents_are_read_together,
);

const FORK: &str = "mutation($id: ID!, $count: Int, $secrets: Boolean, $key: String) {
    forkCapsule(id: $id, count: $count, inheritSecrets: $secrets, idempotencyKey: $key) { capsules {
        id name state vcpus memoryMib diskMib timeoutSec labels startedAt
        parent { id name } template { name } host { name }
    } }
}";

async fn copies_run_beside_their_parent(world: &World) {
    let _other = world.host_with("other", 4096).await;
    let agent = world.host("one").await;
    let input = json!({"name": "web", "memoryMib": 512, "timeoutSec": 60, "labels": {"a": "b"}});
    let id = id_of(&world.ask(CREATE, json!({"input": input})).await["createCapsule"]["capsule"]);
    assert_eq!(world.row(id).await.host_id, Some(agent.host));
    let made = world.ask(FORK, json!({"id": id.to_string(), "count": 3})).await;
    let copies = made["forkCapsule"]["capsules"].as_array().expect("a list").clone();
    assert_eq!(copies.len(), 3);
    for copy in &copies {
        assert_eq!(
            copy,
            &json!({
                "id": copy["id"], "name": null, "state": "RUNNING", "vcpus": 1, "memoryMib": 512, "diskMib": 1024,
                "timeoutSec": 60, "labels": {"a": "b"}, "startedAt": copy["startedAt"],
                "parent": {"id": id.to_string(), "name": "web"}, "template": {"name": "minimal"},
                "host": {"name": "one"},
            })
        );
        assert!(copy["startedAt"].is_string());
    }
    let asked = agent.forked().remove(0);
    let ids: Vec<_> = copies.iter().map(|copy| copy["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!((asked.child_ids, asked.inherit_secrets), (ids.clone(), false));
    let rows = world.rows().await;
    let moments: std::collections::HashSet<_> = rows.iter().filter_map(|row| row.fork_id).collect();
    assert_eq!(moments.len(), 1, "all of one moment");
    assert!(rows.iter().all(|row| row.operation_until.is_none()), "{rows:?}");

    // One by default; of a paused one, and of a copy, too.
    world
        .ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id.to_string()}))
        .await;
    let made = world.ask(FORK, json!({"id": id.to_string(), "secrets": true})).await;
    assert_eq!(made["forkCapsule"]["capsules"].as_array().expect("a list").len(), 1);
    assert!(agent.forked().remove(1).inherit_secrets);
    assert_eq!(world.row(id).await.state, CapsuleState::Paused);
    world.ask(FORK, json!({"id": ids[0]})).await;

    for count in [0, 101, -1] {
        let error = world.refused(FORK, json!({"id": id.to_string(), "count": count})).await;
        assert_eq!(error.brief(), ("INVALID_INPUT", Some("count")));
    }
    let (_, other) = world.other_team().await;
    let error = refused(world.execute(Some(&other), FORK, json!({"id": id.to_string()})).await);
    assert_eq!(error.code, "NOT_FOUND");
    world
        .ask(
            "mutation($id: ID!) { destroyCapsule(id: $id) { capsule { id } } }",
            json!({"id": id.to_string()}),
        )
        .await;
    assert_eq!(world.refused(FORK, json!({"id": id.to_string()})).await.code, "FAILED_PRECONDITION");
    let seen =
        world.ask("query($id: ID!) { capsule(id: $id) { parent { state } } }", json!({"id": ids[0]})).await;
    assert_eq!(seen["capsule"]["parent"]["state"], "STOPPED", "lineage outlives the parent");
}

async fn all_of_them_or_none(world: &World) {
    let agent = world.host_with("small", 1024).await;
    let id = world.create().await;
    let error = world.refused(FORK, json!({"id": id.to_string(), "count": 4})).await;
    assert_eq!(error.code, "RESOURCE_EXHAUSTED");
    assert!(error.message.contains("memory"), "{error:?}");
    assert_eq!(agent.calls("fork"), 0);

    for status in [
        Status::resource_exhausted("no slot is free"),
        Status::internal("secret detail"),
        Status::failed_precondition("the capsule is being destroyed"),
    ] {
        agent.refuse_next("fork", status);
        let error = world.refused(FORK, json!({"id": id.to_string(), "count": 2, "key": "k"})).await;
        assert!(!error.message.contains("secret"), "{error:?}");
        assert_eq!(world.rows().await.len(), 1, "no row of any copy is left");
    }
    assert_eq!(agent.calls("destroy"), 6, "what may have been made is undone");
    // The key is free again.
    world.ask(FORK, json!({"id": id.to_string(), "count": 2, "key": "k"})).await;
    assert_eq!(world.rows().await.len(), 3);

    // A host that is gone made nothing that anybody counts on.
    agent.kill();
    let error = world.refused(FORK, json!({"id": id.to_string()})).await;
    assert_eq!(error.code, "UNAVAILABLE");
    assert_eq!(world.rows().await.len(), 3);
}

async fn a_repeat_is_the_same_copies(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let variables = json!({"id": id.to_string(), "count": 2, "key": "k"});
    let gate = agent.gate("fork");
    let both = async { tokio::join!(world.ask(FORK, variables.clone()), world.ask(FORK, variables.clone())) };
    let opened = async {
        arrived(&agent, "fork", 1).await;
        gate.add_permits(2);
    };
    let ((first, second), ()) = tokio::join!(both, opened);
    assert_eq!(first, second);
    assert_eq!(world.ask(FORK, variables).await, first);
    assert_eq!(agent.calls("fork"), 1);
    assert_eq!(world.rows().await.len(), 3);
    let error = world.refused(FORK, json!({"id": id.to_string(), "count": 3, "key": "k"})).await;
    assert_eq!(error.brief(), ("CONFLICT", Some("idempotencyKey")));
}

async fn what_was_cut_off_is_settled_by_the_host(world: &World) {
    let agent = world.host("one").await;
    let made = world.plant(CapsuleState::Starting, Some(agent.host)).await;
    let lost = world.plant(CapsuleState::Starting, Some(agent.host)).await;
    let snapshotting = world.plant(CapsuleState::Snapshotting, Some(agent.host)).await;
    let paused = world.plant(CapsuleState::Snapshotting, Some(agent.host)).await;
    let gone = world.plant(CapsuleState::Snapshotting, Some(agent.host)).await;
    agent.put(made, OnHost::Running);
    agent.put(snapshotting, OnHost::Running);
    agent.put(paused, OnHost::Paused);
    let supervisor = Supervisor::start(&world.services);
    world.until(made, CapsuleState::Running).await;
    world.until(lost, CapsuleState::Error).await;
    world.until(snapshotting, CapsuleState::Running).await;
    world.until(paused, CapsuleState::Paused).await;
    world.until(gone, CapsuleState::Stopped).await;
    supervisor.stop().await;
}

async fn parents_are_read_together(world: &World) {
    let _agent = world.host("one").await;
    for _ in 0..3 {
        let id = world.create().await;
        world.ask(FORK, json!({"id": id.to_string(), "count": 3})).await;
    }
    let query = "{ capsules { nodes { id parent { id name } } } }";
    let request = world.request(Some(&world.key), query, json!({})).await;
    world.reads();
    let response = world.schema.execute(request).await;
    assert_eq!(world.reads().len(), 2, "the page and the parents: {response:?}");
    let nodes = response.data.into_json().expect("is JSON")["capsules"]["nodes"].clone();
    let with_parents =
        nodes.as_array().expect("nodes").iter().filter(|node| node["parent"]["id"].is_string()).count();
    assert_eq!(with_parents, 9);
}
