//! The life of a capsule, and what is refused.

use serde_json::json;
use tonic::Status;
use wrenn_entities::{CapsuleId, capsule::CapsuleState, id::TypedId};

use crate::{
    agent::arrived,
    on_both_databases,
    world::{CREATE, World, id_of, refused},
};

on_both_databases!(
    lives_and_dies,
    bad_input_changes_nothing,
    another_teams_is_not_found,
    only_one_of_two_wins,
    goes_on_without_the_client,
    a_failure_on_the_host_is_told_and_undone,
    what_the_host_cannot_pause_stays_running,
    a_timeout_is_told_to_the_host,
);

const LIFE: &str = "mutation($id: ID!) {
    pauseCapsule(id: $id) { capsule { state } }
    again: pauseCapsule(id: $id) { capsule { state } }
    resumeCapsule(id: $id) { capsule { state } }
    pingCapsule(id: $id) { capsule { lastActiveAt } }
    destroyCapsule(id: $id) { capsule { state cause { code } } }
    gone: destroyCapsule(id: $id) { capsule { state } }
}";

async fn lives_and_dies(world: &World) {
    let agent = world.host("one").await;
    let input = json!({
        "name": "web-1", "memoryMib": 512, "timeoutSec": 60, "labels": {"a": "b"},
        "env": [{"name": "A", "value": "1"}],
    });
    let made = world
        .ask(
            "mutation($input: CreateCapsuleInput!) { createCapsule(input: $input) { capsule {
                id name state vcpus memoryMib diskMib timeoutSec labels startedAt
                template { name } team { name } host { name status } processes { pid tag running }
            } } }",
            json!({"input": input}),
        )
        .await;
    let capsule = &made["createCapsule"]["capsule"];
    let id = id_of(capsule);
    assert_eq!(
        capsule,
        &json!({
            "id": id.to_string(), "name": "web-1", "state": "RUNNING", "vcpus": 1, "memoryMib": 512, "diskMib": 1024,
            "timeoutSec": 60, "labels": {"a": "b"}, "startedAt": capsule["startedAt"],
            "template": {"name": "minimal"}, "team": {"name": "First"}, "host": {"name": "one", "status": "ONLINE"},
            "processes": [{"pid": 7, "tag": "proc-0000abcd", "running": true}],
        })
    );
    assert!(capsule["startedAt"].is_string());
    let asked = agent.created().remove(0);
    assert_eq!((asked.memory_mib, asked.timeout_sec, asked.default_user.as_str()), (512, 60, "root"));
    assert_eq!(asked.env[0].name, "A");
    assert!(asked.template_team_id.ends_with(&"0".repeat(25)), "the platform's: {}", asked.template_team_id);

    let life = world.ask(LIFE, json!({"id": id.to_string()})).await;
    assert_eq!(life["pauseCapsule"]["capsule"]["state"], "PAUSED");
    assert_eq!(life["again"]["capsule"]["state"], "PAUSED");
    assert_eq!(life["resumeCapsule"]["capsule"]["state"], "RUNNING");
    assert!(life["pingCapsule"]["capsule"]["lastActiveAt"].is_string());
    assert_eq!(life["destroyCapsule"]["capsule"], json!({"state": "STOPPED", "cause": null}));
    assert_eq!(life["gone"]["capsule"]["state"], "STOPPED");
    assert_eq!(agent.calls("pause"), 1, "a paused one is not paused again");
    assert!(agent.capsules().is_empty());
    assert!(world.row(id).await.operation_until.is_none());

    let found = world
        .ask(
            "query($id: ID!) { capsule(id: $id) { state processes { pid } } }",
            json!({"id": id.to_string()}),
        )
        .await;
    assert_eq!(found["capsule"], json!({"state": "STOPPED", "processes": []}));
    for verb in ["pauseCapsule", "resumeCapsule", "pingCapsule"] {
        let query = format!("mutation($id: ID!) {{ {verb}(id: $id) {{ capsule {{ id }} }} }}");
        let error = world.refused(&query, json!({"id": id.to_string()})).await;
        assert_eq!(error.code, "FAILED_PRECONDITION", "{verb}: {error:?}");
    }
}

async fn bad_input_changes_nothing(world: &World) {
    let agent = world.host("one").await;
    for (input, code, field) in [
        (json!({"vcpus": 0}), "INVALID_INPUT", "vcpus"),
        (json!({"vcpus": 33}), "INVALID_INPUT", "vcpus"),
        (json!({"memoryMib": 1_048_576}), "INVALID_INPUT", "memoryMib"),
        (json!({"memoryMib": "much"}), "INVALID_INPUT", "memoryMib"),
        (json!({"diskMib": 1}), "INVALID_INPUT", "diskMib"),
        (json!({"timeoutSec": -1}), "INVALID_INPUT", "timeoutSec"),
        (json!({"name": "../etc"}), "INVALID_INPUT", "name"),
        (json!({"labels": {"a": 1}}), "INVALID_INPUT", "labels"),
        (json!({"env": [{"name": "A=B", "value": ""}]}), "INVALID_INPUT", "env"),
        (json!({"idempotencyKey": ""}), "INVALID_INPUT", "idempotencyKey"),
        (json!({"egress": {"allow": ["example.com", "10.0.0.0/40"]}}), "INVALID_INPUT", "egress"),
        (json!({"egress": {"deny": ["::/0"]}}), "INVALID_INPUT", "egress"),
        (json!({"template": "no-such"}), "NOT_FOUND", "template"),
        (json!({"template": CapsuleId::generate().to_string()}), "INVALID_INPUT", "template"),
    ] {
        let error = world.refused(CREATE, json!({"input": input})).await;
        assert_eq!(error.brief(), (code, Some(field)), "{input}: {error:?}");
        assert!(!error.message.is_empty());
    }
    let egress = json!({"allow": ["example.com", "10.0.0.0/40"]});
    let error = world.refused(CREATE, json!({"input": {"egress": egress}})).await;
    assert!(error.message.contains("`10.0.0.0/40`"), "the entry is named: {error:?}");
    let error = world.refused(CREATE, json!({"input": {"memoryMib": 1_048_576}})).await;
    assert_eq!(error.message, "`memoryMib` is from 128 to 65536, not 1048576");

    let wrong = "tpl-0000000000000000000000000";
    for query in [
        "query($id: ID!) { capsule(id: $id) { id } }",
        "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }",
        "mutation($id: ID!) { setCapsuleTimeout(id: $id, timeoutSec: 1) { capsule { id } } }",
    ] {
        let error = world.refused(query, json!({"id": wrong})).await;
        assert_eq!(error.brief(), ("INVALID_INPUT", Some("id")));
        assert!(error.message.contains("`cl-`"), "{error:?}");
    }
    let error = world.refused("{ nonsense }", json!({})).await;
    assert_eq!(error.code, "INVALID_INPUT");
    let error = world.refused("{", json!({})).await;
    assert_eq!(error.code, "INVALID_INPUT");

    assert!(world.rows().await.is_empty());
    assert_eq!(agent.calls("create"), 0);
}

async fn another_teams_is_not_found(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await;
    let (_, other) = world.other_team().await;
    let unknown = CapsuleId::generate();
    for query in [
        "query($id: ID!) { capsule(id: $id) { id } }",
        "query($id: ID!) { node(id: $id) { id } }",
        "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }",
        "mutation($id: ID!) { destroyCapsule(id: $id) { capsule { id } } }",
        "mutation($id: ID!) { setCapsuleTimeout(id: $id, timeoutSec: 1) { capsule { id } } }",
        "mutation($id: ID!) { exec(input: {capsuleId: $id, command: \"true\"}) { pid } }",
        "mutation($id: ID!) { signalProcess(capsuleId: $id, selector: \"7\") { process { pid } } }",
    ] {
        let error = refused(world.execute(Some(&other), query, json!({"id": id.to_string()})).await);
        let mut same = refused(world.execute(Some(&other), query, json!({"id": unknown.to_string()})).await);
        assert_eq!(error.code, "NOT_FOUND", "{query}");
        same.message = same.message.replace(&unknown.to_string(), &id.to_string());
        assert_eq!(error, same, "another team's looks like one that is not there");
    }
    let list = world.execute(Some(&other), "{ capsules { totalCount } }", json!({})).await;
    assert_eq!(list.data.into_json().expect("is JSON")["capsules"]["totalCount"], 0);
    assert_eq!(world.row(id).await.state, CapsuleState::Running);
}

async fn only_one_of_two_wins(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let gate = agent.gate("pause");
    let query = "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { state } } }";
    let variables = json!({"id": id.to_string()});
    let first = world.execute(Some(&world.key), query, variables.clone());
    let second = async {
        arrived(&agent, "pause", 1).await;
        let error = world.refused(query, variables.clone()).await;
        let exec = world
            .refused(
                "mutation($id: ID!) { exec(input: {capsuleId: $id, command: \"true\"}) { pid } }",
                variables.clone(),
            )
            .await;
        gate.add_permits(1);
        (error, exec)
    };
    let (first, (second, exec)) = tokio::join!(first, second);
    assert!(first.errors.is_empty(), "{first:?}");
    assert_eq!(second.code, "CONFLICT");
    assert_eq!(exec.code, "CONFLICT");
    assert_eq!(agent.calls("pause"), 1);
    assert_eq!(world.row(id).await.state, CapsuleState::Paused);
}

async fn goes_on_without_the_client(world: &World) {
    let agent = world.host("one").await;
    let gate = agent.gate("create");
    {
        let request = world.execute(Some(&world.key), CREATE, json!({"input": {"name": "left-alone"}}));
        tokio::select! {
            answer = request => panic!("answered before the host did: {answer:?}"),
            () = arrived(&agent, "create", 1) => {}
        }
    }
    gate.add_permits(1);
    let id = world.rows().await.remove(0).id;
    world.until(id, CapsuleState::Running).await;
}

async fn a_failure_on_the_host_is_told_and_undone(world: &World) {
    let agent = world.host("one").await;
    agent.refuse_next("create", Status::internal("secret detail"));
    let error = world.refused(CREATE, json!({"input": {}})).await;
    assert_eq!(error.code, "INTERNAL");
    assert!(!error.message.contains("secret detail"), "{error:?}");
    assert!(error.message.contains("test-request"), "{error:?}");
    let row = world.rows().await.remove(0);
    assert_eq!((row.state, row.cause_code.as_deref()), (CapsuleState::Error, Some("CREATE_FAILED")));
    assert_eq!(agent.calls("destroy"), 1, "what may have been made is undone");

    // The mistake of the caller's that only the host can see leaves nothing at all.
    let mut status = Status::invalid_argument("the image is larger than that");
    status.metadata_mut().insert(wrenn_proto::FIELD, "diskMib".parse().expect("a value"));
    agent.refuse_next("create", status);
    let error = world.refused(CREATE, json!({"input": {"diskMib": 128}})).await;
    assert_eq!(error.brief(), ("INVALID_INPUT", Some("diskMib")));
    assert_eq!(world.rows().await.len(), 1);

    let gone = world
        .ask(
            "mutation($id: ID!) { destroyCapsule(id: $id) { capsule { state } } }",
            json!({"id": row.id.to_string()}),
        )
        .await;
    assert_eq!(gone["destroyCapsule"]["capsule"]["state"], "STOPPED");
}

async fn what_the_host_cannot_pause_stays_running(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    agent.refuse_next("pause", Status::resource_exhausted("no room on the disk"));
    let error = world
        .refused(
            "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }",
            json!({"id": id.to_string()}),
        )
        .await;
    assert_eq!((error.code.as_str(), error.message.as_str()), ("RESOURCE_EXHAUSTED", "no room on the disk"));
    assert_eq!(world.row(id).await.state, CapsuleState::Running);

    // One that the host lost in the middle is not running any more.
    agent.refuse_next("pause", Status::internal("the VMM died"));
    agent.forget(id);
    let error = world
        .refused(
            "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }",
            json!({"id": id.to_string()}),
        )
        .await;
    assert_eq!(error.code, "INTERNAL");
    let row = world.row(id).await;
    assert_eq!((row.state, row.cause_code.as_deref()), (CapsuleState::Stopped, Some("LOST_BY_HOST")));
}

async fn a_timeout_is_told_to_the_host(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let query = "mutation($id: ID!, $s: Int!) { setCapsuleTimeout(id: $id, timeoutSec: $s) { capsule { timeoutSec state } } }";
    let set = world.ask(query, json!({"id": id.to_string(), "s": 90})).await;
    assert_eq!(set["setCapsuleTimeout"]["capsule"], json!({"timeoutSec": 90, "state": "RUNNING"}));
    assert_eq!(agent.capsules().remove(0).timeout_sec, 90);
    agent.refuse_next("set_timeout", Status::unavailable("stopping"));
    let error = world.refused(query, json!({"id": id.to_string(), "s": 5})).await;
    assert_eq!(error.code, "UNAVAILABLE");
    assert_eq!(world.row(id).await.timeout_sec, 90, "what the host does not know is not written");
}
