//! Templates that are made of capsules, and capsules that are made of those.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use sea_orm::{ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Set};
use serde_json::json;
use tonic::Status;
use wrenn_entities::{
    CapsuleId, HostId, TeamId, TemplateId,
    capsule::CapsuleState,
    host::{self, HostStatus},
    id::TypedId,
    json::Environment,
    template::{self, TemplateKind, TemplateState},
    time::now,
};
use wrenn_proto::agent::v1::CapsuleState as OnHost;
use wrenn_schema::jobs::Supervisor;

use crate::{
    agent::arrived,
    on_both_databases,
    world::{CREATE, PATIENCE, World, id_of, refused},
};

on_both_databases!(
    a_capsule_becomes_a_template,
    names_are_taken_once,
    one_takes_the_place_of_another,
    a_failure_leaves_nothing,
    the_capsule_is_used_meanwhile,
    a_repeat_is_the_same_template,
    capsules_come_from_snapshots_where_those_are,
    what_is_deleted_goes_when_its_host_is_there,
    a_killed_control_plane_leaves_no_template_behind,
);

const SNAPSHOT: &str = "mutation($id: ID!, $name: String!, $overwrite: Boolean, $key: String) {
    snapshotCapsule(id: $id, name: $name, overwrite: $overwrite, idempotencyKey: $key) { template {
        id name kind vcpus memoryMib diskMib sizeBytes sourceCapsuleId host { name }
    } }
}";
const DELETE: &str = "mutation($id: ID!) { deleteTemplate(id: $id) { deletedId } }";

async fn snapshot(world: &World, id: CapsuleId, name: &str) -> TemplateId {
    let made = world.ask(SNAPSHOT, json!({"id": id.to_string(), "name": name})).await;
    made["snapshotCapsule"]["template"]["id"].as_str().expect("an id").parse().expect("a template's id")
}

async fn template(world: &World, id: TemplateId) -> Option<template::Model> {
    template::Entity::find_by_id(id).one(&world.db).await.expect("reads")
}

/// The team's own, also those that are gone.
async fn templates(world: &World) -> Vec<template::Model> {
    template::Entity::find()
        .filter(template::Column::TeamId.ne(TeamId::PLATFORM))
        .all(&world.db)
        .await
        .expect("reads")
}

async fn a_capsule_becomes_a_template(world: &World) {
    let agent = world.host("one").await;
    let input = json!({"memoryMib": 512, "labels": {"a": "b"}});
    let made = world.ask(CREATE, json!({"input": input})).await;
    let id = id_of(&made["createCapsule"]["capsule"]);
    let made = world.ask(SNAPSHOT, json!({"id": id.to_string(), "name": "web-1"})).await;
    let shown = &made["snapshotCapsule"]["template"];
    assert_eq!(
        shown,
        &json!({
            "id": shown["id"], "name": "web-1", "kind": "SNAPSHOT", "vcpus": 1, "memoryMib": 512, "diskMib": 1024,
            "sizeBytes": "12345", "sourceCapsuleId": id.to_string(), "host": {"name": "one"},
        })
    );
    assert_eq!(agent.templates(), [shown["id"].as_str().expect("an id")]);
    let row = world.row(id).await;
    assert_eq!((row.state, row.operation_until), (CapsuleState::Running, None));

    // One that is paused stays so, with the cause that it had.
    let paused = world.plant_held(CapsuleState::Paused, Some(agent.host), None).await;
    agent.put(paused, OnHost::Paused);
    let mut row = world.row(paused).await.into_active_model();
    row.cause_code = Set(Some("IDLE".into()));
    row.update(&world.db).await.expect("writes");
    snapshot(world, paused, "web-2").await;
    let row = world.row(paused).await;
    assert_eq!((row.state, row.cause_code.as_deref()), (CapsuleState::Paused, Some("IDLE")));

    let found =
        world.ask("{ template(name: \"web-1\") { id } templates { nodes { name } } }", json!({})).await;
    assert_eq!(found["template"]["id"], shown["id"]);
    assert_eq!(
        found["templates"]["nodes"],
        json!([
            {"name": "minimal"}, {"name": "python"}, {"name": "code-interpreter"}, {"name": "web-1"},
            {"name": "web-2"},
        ])
    );

    let (_, other) = world.other_team().await;
    let query = "query($id: ID!) { template(id: $id) { id } }";
    let error = refused(world.execute(Some(&other), query, json!({"id": shown["id"]})).await);
    assert_eq!(error.code, "NOT_FOUND");
    let variables = json!({"id": id.to_string(), "name": "theirs"});
    assert_eq!(refused(world.execute(Some(&other), SNAPSHOT, variables).await).code, "NOT_FOUND");
}

async fn names_are_taken_once(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    snapshot(world, id, "taken").await;
    for (name, code) in [
        ("taken", "CONFLICT"),
        ("minimal", "CONFLICT"),
        ("code-interpreter", "CONFLICT"),
        ("../etc", "INVALID_INPUT"),
        ("Upper", "INVALID_INPUT"),
        ("tpl-0000000000000000000000000", "INVALID_INPUT"),
    ] {
        let error = world.refused(SNAPSHOT, json!({"id": id.to_string(), "name": name})).await;
        assert_eq!(error.brief(), (code, Some("name")), "{name}: {error:?}");
    }
    let variables = json!({"id": id.to_string(), "name": "minimal", "overwrite": true});
    assert_eq!(world.refused(SNAPSHOT, variables).await.brief(), ("CONFLICT", Some("name")));
    assert_eq!(agent.calls("snapshot"), 1);
    assert_eq!(world.row(id).await.state, CapsuleState::Running);

    // Two at the same moment, of two capsules.
    let other = world.create().await;
    let gate = agent.gate("snapshot");
    let first = world.execute(
        Some(&world.key),
        SNAPSHOT,
        json!({"id": id.to_string(), "name": "new", "overwrite": true}),
    );
    let second = async {
        arrived(&agent, "snapshot", 2).await;
        let found = world.ask("{ templates { nodes { name } } }", json!({})).await;
        assert_eq!(found["templates"]["nodes"].as_array().expect("nodes").len(), 4, "not before it is whole");
        let variables = json!({"id": other.to_string(), "name": "new", "overwrite": true});
        let name = world.refused(SNAPSHOT, variables).await;
        let capsule = world.refused(SNAPSHOT, json!({"id": id.to_string(), "name": "newer"})).await;
        gate.add_permits(1);
        (name, capsule)
    };
    let (first, (name, capsule)) = tokio::join!(first, second);
    assert!(first.errors.is_empty(), "{first:?}");
    assert_eq!(name.brief(), ("CONFLICT", Some("name")));
    assert_eq!(capsule.code, "CONFLICT", "the capsule is being snapshotted already: {capsule:?}");
}

async fn until_gone(world: &World, id: TemplateId) {
    let deadline = Instant::now() + PATIENCE;
    while template(world, id).await.is_some_and(|row| row.host_id.is_some()) {
        assert!(Instant::now() < deadline, "the files of {id} are still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn one_takes_the_place_of_another(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let old = snapshot(world, id, "web").await;
    agent.refuse_next("snapshot", Status::resource_exhausted("the disk is full"));
    let overwrite = json!({"id": id.to_string(), "name": "web", "overwrite": true});
    assert_eq!(world.refused(SNAPSHOT, overwrite.clone()).await.code, "RESOURCE_EXHAUSTED");
    let found = world.ask("{ template(name: \"web\") { id } }", json!({})).await;
    assert_eq!(
        found["template"]["id"],
        old.to_string().as_str(),
        "the old one stays until the new one is whole"
    );

    let supervisor = Supervisor::start(&world.services);
    let made = world.ask(SNAPSHOT, overwrite).await;
    let new: TemplateId =
        made["snapshotCapsule"]["template"]["id"].as_str().expect("an id").parse().expect("an id");
    let found = world.ask("{ template(name: \"web\") { id } }", json!({})).await;
    assert_eq!(found["template"]["id"], new.to_string().as_str());
    until_gone(world, old).await;
    let row = template(world, old).await.expect("the row stays, for the capsules made from it");
    assert!(row.deleted_at.is_some());
    supervisor.stop().await;
    assert_eq!(agent.templates(), [new.to_string()]);
}

async fn a_failure_leaves_nothing(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    agent.refuse_next("snapshot", Status::internal("secret detail"));
    let variables = json!({"id": id.to_string(), "name": "web", "key": "k"});
    let error = world.refused(SNAPSHOT, variables.clone()).await;
    assert_eq!(error.code, "INTERNAL");
    assert!(!error.message.contains("secret"), "{error:?}");
    assert_eq!(world.row(id).await.state, CapsuleState::Running);
    // The name and the key are free again.
    world.ask(SNAPSHOT, variables).await;

    // A capsule that the host lost in the middle does not run any more.
    agent.refuse_next("snapshot", Status::internal("the VMM died"));
    agent.forget(id);
    world.refused(SNAPSHOT, json!({"id": id.to_string(), "name": "other"})).await;
    let row = world.row(id).await;
    assert_eq!((row.state, row.cause_code.as_deref()), (CapsuleState::Stopped, Some("LOST_BY_HOST")));
    let error = world.refused(SNAPSHOT, json!({"id": id.to_string(), "name": "other"})).await;
    assert_eq!(error.code, "FAILED_PRECONDITION");

    // Of what was never whole not even a row is left.
    let supervisor = Supervisor::start(&world.services);
    let deadline = Instant::now() + PATIENCE;
    while templates(world).await.len() > 1 {
        assert!(Instant::now() < deadline, "{:?}", templates(world).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    supervisor.stop().await;
    assert_eq!(agent.calls("delete_template"), 2);
}

async fn the_capsule_is_used_meanwhile(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let gate = agent.gate("snapshot");
    let first = world.execute(Some(&world.key), SNAPSHOT, json!({"id": id.to_string(), "name": "web"}));
    let second = async {
        arrived(&agent, "snapshot", 1).await;
        assert_eq!(world.row(id).await.state, CapsuleState::Snapshotting);
        let ran = world
            .ask(
                "mutation($id: ID!) { exec(input: {capsuleId: $id, argv: [\"true\"]}) { exitCode } }",
                json!({"id": id.to_string()}),
            )
            .await;
        assert_eq!(ran["exec"]["exitCode"], 0);
        let seen = world
            .ask("query($id: ID!) { capsule(id: $id) { processes { pid } } }", json!({"id": id.to_string()}))
            .await;
        assert_eq!(seen["capsule"]["processes"], json!([{"pid": 7}]));
        let pause = "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }";
        assert_eq!(world.refused(pause, json!({"id": id.to_string()})).await.code, "CONFLICT");
        gate.add_permits(1);
    };
    let (first, ()) = tokio::join!(first, second);
    assert!(first.errors.is_empty(), "{first:?}");
}

async fn a_repeat_is_the_same_template(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let variables = json!({"id": id.to_string(), "name": "web", "key": "k"});
    let gate = agent.gate("snapshot");
    let both = async {
        tokio::join!(world.ask(SNAPSHOT, variables.clone()), world.ask(SNAPSHOT, variables.clone()))
    };
    let opened = async {
        arrived(&agent, "snapshot", 1).await;
        gate.add_permits(2);
    };
    let ((first, second), ()) = tokio::join!(both, opened);
    assert_eq!(first, second);
    assert_eq!(world.ask(SNAPSHOT, variables).await, first);
    assert_eq!(agent.calls("snapshot"), 1);
    let error = world.refused(SNAPSHOT, json!({"id": id.to_string(), "name": "other", "key": "k"})).await;
    assert_eq!(error.brief(), ("CONFLICT", Some("idempotencyKey")));

    // The key of one mutation says nothing to another.
    world.ask(CREATE, json!({"input": {"idempotencyKey": "k"}})).await;
}

async fn set_online(world: &World, host: HostId, status: HostStatus) {
    let row = host::Entity::find_by_id(host).one(&world.db).await.expect("reads").expect("is there");
    let mut row = row.into_active_model();
    row.status = Set(status);
    row.update(&world.db).await.expect("writes");
}

async fn capsules_come_from_snapshots_where_those_are(world: &World) {
    let agent = world.host_with("small", 2048).await;
    let made = world.ask(CREATE, json!({"input": {"memoryMib": 512, "diskMib": 2048}})).await;
    let id = id_of(&made["createCapsule"]["capsule"]);
    let template = snapshot(world, id, "web").await;
    let mut row = template::Entity::find_by_id(template)
        .one(&world.db)
        .await
        .expect("reads")
        .expect("is there")
        .into_active_model();
    let env =
        |name: &str, value: &str| wrenn_entities::json::EnvVar { name: name.into(), value: value.into() };
    row.env = Set(Environment(vec![env("A", "template"), env("B", "template")]));
    row.update(&world.db).await.expect("writes");
    // This one has more room, but not the files.
    let large = world.host("large").await;

    for (field, value) in [("vcpus", 2), ("memoryMib", 256), ("diskMib", 1024)] {
        let error = world.refused(CREATE, json!({"input": {"template": "web", field: value}})).await;
        assert_eq!(error.brief(), ("INVALID_INPUT", Some(field)), "{error:?}");
    }
    let input = json!({
        "template": "web", "memoryMib": 512,
        "env": [{"name": "A", "value": "own"}, {"name": "S", "value": "s", "secret": true}],
        "egress": {"denyAll": true, "allow": ["10.0.0.0/8", "*.example.com"]},
    });
    let made = world.ask(CREATE, json!({"input": input})).await;
    let child = id_of(&made["createCapsule"]["capsule"]);
    let row = world.row(child).await;
    assert_eq!((row.host_id, row.memory_mib, row.disk_mib), (Some(agent.host), 512, 2048));
    let asked = agent.created().pop().expect("was asked");
    assert!(asked.from_snapshot);
    assert_eq!(asked.template_id, template.to_string());
    assert_eq!(asked.template_team_id, world.team.to_string());
    let names: Vec<_> = asked.env.iter().map(|var| (var.name.as_str(), var.value.as_str())).collect();
    assert_eq!(names, [("A", "template"), ("B", "template"), ("A", "own"), ("S", "s")]);
    assert_eq!(asked.secret_env, ["S"]);
    let egress = asked.egress.expect("comes along");
    assert!(egress.deny_all);
    assert_eq!(egress.allow, ["10.0.0.0/8", "*.example.com"]);
    assert_eq!(large.calls("create"), 0);

    // A host that says no is the last word: there is no other.
    agent.refuse_next("create", Status::resource_exhausted("no slot is free"));
    let before = world.rows().await.len();
    let error = world.refused(CREATE, json!({"input": {"template": "web"}})).await;
    assert_eq!((error.code.as_str(), error.message.as_str()), ("RESOURCE_EXHAUSTED", "no slot is free"));
    for _ in 0..2 {
        world.ask(CREATE, json!({"input": {"template": "web"}})).await;
    }
    let error = world.refused(CREATE, json!({"input": {"template": "web"}})).await;
    assert_eq!(error.code, "RESOURCE_EXHAUSTED");
    assert!(error.message.contains("memory"), "{error:?}");
    set_online(world, agent.host, HostStatus::Unreachable).await;
    let error = world.refused(CREATE, json!({"input": {"template": "web"}})).await;
    assert_eq!(error.code, "UNAVAILABLE");
    assert_eq!(world.rows().await.len(), before + 2, "what could not be made leaves no row");
    assert_eq!(large.calls("create"), 0);
    let minimal = world.create().await;
    let asked = large.created().pop().expect("was asked");
    assert_eq!((asked.capsule_id, asked.from_snapshot), (minimal.to_string(), false));
    assert_eq!((asked.egress, asked.secret_env), (None, Vec::new()));
}

async fn what_is_deleted_goes_when_its_host_is_there(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let template_id = snapshot(world, id, "web").await;
    let made = world.ask(CREATE, json!({"input": {"template": "web"}})).await;
    let child = id_of(&made["createCapsule"]["capsule"]);

    let (_, other) = world.other_team().await;
    let variables = json!({"id": template_id.to_string()});
    let error = refused(world.execute(Some(&other), DELETE, variables.clone()).await);
    assert_eq!(error.code, "NOT_FOUND");
    for built_in in ["tpl-0000000000000000000000000", "tpl-0000000000000000000000001"] {
        let variables = json!({"id": built_in});
        assert_eq!(world.refused(DELETE, variables.clone()).await.code, "FAILED_PRECONDITION");
        let error = refused(world.execute(Some(&world.admin), DELETE, variables).await);
        assert_eq!(error.code, "FAILED_PRECONDITION");
    }

    set_online(world, agent.host, HostStatus::Unreachable).await;
    let supervisor = Supervisor::start(&world.services);
    let deleted = world.ask(DELETE, variables.clone()).await;
    assert_eq!(deleted["deleteTemplate"]["deletedId"], template_id.to_string().as_str());
    assert_eq!(world.refused(DELETE, variables).await.code, "NOT_FOUND");
    let error = world.refused(CREATE, json!({"input": {"template": "web"}})).await;
    assert_eq!(error.brief(), ("NOT_FOUND", Some("template")));
    assert_eq!(agent.calls("delete_template"), 0, "its host is away");

    // The first time it cannot: it is asked again.
    agent.refuse_next("delete_template", Status::unavailable("stopping"));
    set_online(world, agent.host, HostStatus::Online).await;
    until_gone(world, template_id).await;
    // Nobody heard of its host for a while, so it may have been missing.
    world.until(id, CapsuleState::Running).await;
    supervisor.stop().await;
    assert!(agent.calls("delete_template") >= 2);
    assert!(agent.templates().is_empty());

    // Capsules made from it have their own, and still know what they are from.
    let seen = world
        .ask(
            "query($id: ID!) { capsule(id: $id) { template { name host { name } } } }",
            json!({"id": child.to_string()}),
        )
        .await;
    assert_eq!(seen["capsule"]["template"], json!({"name": "web", "host": null}));
    snapshot(world, id, "web").await;
}

async fn a_killed_control_plane_leaves_no_template_behind(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    // The process that made it is gone in the middle; the host goes on and finishes.
    let mut row = world.row(id).await.into_active_model();
    row.state = Set(CapsuleState::Snapshotting);
    row.generation = Set(7);
    row.operation_until = Set(Some(now() + TimeDelta::seconds(2)));
    row.update(&world.db).await.expect("writes");
    let making = template::Model {
        id: TemplateId::generate(),
        team_id: world.team,
        name: "web".into(),
        kind: TemplateKind::Snapshot,
        state: TemplateState::Making,
        host_id: Some(agent.host),
        source_capsule_id: Some(id),
        size_bytes: None,
        vcpus: 1,
        memory_mib: 256,
        disk_mib: 1024,
        default_user: "root".into(),
        env: Environment::default(),
        created_at: now(),
        deleted_at: None,
    };
    let making = making.into_active_model().reset_all().insert(&world.db).await.expect("plants a row").id;
    agent.put_template(making);
    let another = world.another().await;
    let supervisor = Supervisor::start(&another);
    world.until(id, CapsuleState::Running).await;
    let deadline = Instant::now() + PATIENCE;
    while template(world, making).await.is_some() {
        assert!(Instant::now() < deadline, "the template is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    supervisor.stop().await;
    another.shutdown().await;
    assert!(agent.templates().is_empty());
    snapshot(world, id, "web").await;
}
