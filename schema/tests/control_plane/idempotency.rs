//! The same request again.

use futures_util::future::join_all;
use serde_json::json;
use tonic::Status;

use crate::{
    agent::arrived,
    on_both_databases,
    world::{CREATE, World, id_of},
};

on_both_databases!(
    a_repeat_is_the_same_capsule,
    at_the_same_moment_too,
    a_failed_first_attempt_frees_the_key
);

async fn a_repeat_is_the_same_capsule(world: &World) {
    let agent = world.host("one").await;
    let input = json!({"input": {"name": "a", "idempotencyKey": "k"}});
    let first = id_of(&world.ask(CREATE, input.clone()).await["createCapsule"]["capsule"]);
    let second = id_of(&world.ask(CREATE, input).await["createCapsule"]["capsule"]);
    assert_eq!(first, second);
    assert_eq!(agent.calls("create"), 1);

    let error = world.refused(CREATE, json!({"input": {"name": "b", "idempotencyKey": "k"}})).await;
    assert_eq!(error.brief(), ("CONFLICT", Some("idempotencyKey")));

    let (_, other) = world.other_team().await;
    let theirs =
        world.execute(Some(&other), CREATE, json!({"input": {"name": "b", "idempotencyKey": "k"}})).await;
    assert!(theirs.errors.is_empty(), "keys of one team say nothing to another: {theirs:?}");
    assert_eq!(world.rows().await.len(), 2);
}

async fn at_the_same_moment_too(world: &World) {
    let agent = world.host("one").await;
    let gate = agent.gate("create");
    let input = json!({"input": {"idempotencyKey": "k"}});
    let all = join_all((0..8).map(|_| world.ask(CREATE, input.clone())));
    let opened = async {
        arrived(&agent, "create", 1).await;
        gate.add_permits(8);
    };
    let (all, ()) = tokio::join!(all, opened);
    let ids: std::collections::HashSet<_> =
        all.iter().map(|made| id_of(&made["createCapsule"]["capsule"])).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(agent.calls("create"), 1);
    assert_eq!(world.rows().await.len(), 1);
}

async fn a_failed_first_attempt_frees_the_key(world: &World) {
    let agent = world.host("one").await;
    agent.refuse_next("create", Status::resource_exhausted("full"));
    let input = json!({"input": {"idempotencyKey": "k"}});
    let error = world.refused(CREATE, input.clone()).await;
    assert_eq!(error.code, "RESOURCE_EXHAUSTED");
    assert!(world.rows().await.is_empty());
    world.ask(CREATE, input).await;
    assert_eq!(world.rows().await.len(), 1);
}
