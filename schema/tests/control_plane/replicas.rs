//! Two control planes on one database that hear of each other by Redis.

use std::sync::Arc;

use async_graphql::{Request, Response, Variables};
use futures_util::Stream;
use serde_json::{Value, json};
use wrenn_entities::capsule::CapsuleState;
use wrenn_schema::{
    Services,
    access::{Credentials, RequestId, authenticate, request_data},
    schema,
};

use crate::{
    redis_server::RedisServer,
    world::{World, next, next_data},
};

const ONE: &str = "subscription($id: ID!) { capsule(id: $id) { state timeoutSec } }";
const ALL: &str = "subscription { capsules { capsule { id state } removedId } }";

/// A subscription through the other replica.
async fn subscribe(
    world: &World,
    other: &Arc<Services>,
    query: &str,
    variables: Value,
) -> impl Stream<Item = Response> + Unpin + use<> {
    let credentials = Credentials { api_key: Some(world.key.clone()), bearer: None };
    let caller = authenticate(other, &credentials).await.expect("the key is accepted");
    let request = Request::new(query).variables(Variables::from_json(variables));
    let request = request_data(other, request, caller, RequestId("through-the-other".to_owned()));
    Box::pin(schema(other.clone()).execute_stream(request))
}

async fn change(world: &World, verb: &str, id: &str) {
    let query = format!("mutation($id: ID!) {{ {verb}(id: $id) {{ capsule {{ id }} }} }}");
    world.ask(&query, json!({"id": id})).await;
}

#[tokio::test]
async fn every_change_at_one_is_seen_at_the_other() {
    let redis = RedisServer::start().await;
    let world = World::of_replicas(redis.url()).await;
    let other = world.another().await;
    let _agent = world.host("one").await;
    let first = world.create().await.to_string();
    let mut one = subscribe(&world, &other, ONE, json!({"id": first})).await;
    let mut all = subscribe(&world, &other, ALL, json!({})).await;
    assert_eq!(next_data(&mut one).await["capsule"]["state"], "RUNNING");
    assert_eq!(next_data(&mut all).await["capsules"]["capsule"]["id"], first.as_str());

    change(&world, "pauseCapsule", &first).await;
    change(&world, "resumeCapsule", &first).await;
    change(&world, "destroyCapsule", &first).await;
    let states = ["PAUSING", "PAUSED", "RESUMING", "RUNNING", "STOPPING", "STOPPED"];
    for state in states {
        assert_eq!(next_data(&mut one).await["capsule"]["state"], state);
    }
    assert!(next(&mut one).await.is_none(), "it ends with the capsule");
    for state in &states[..5] {
        assert_eq!(next_data(&mut all).await["capsules"]["capsule"]["state"], *state);
    }
    assert_eq!(next_data(&mut all).await["capsules"]["removedId"], first.as_str());
    other.shutdown().await;
    drop((one, all, other));
    world.end().await;
}

#[tokio::test]
async fn without_redis_nobody_stays_stale() {
    let mut redis = RedisServer::start().await;
    let world = World::of_replicas(redis.url()).await;
    let other = world.another().await;
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let mut one = subscribe(&world, &other, ONE, json!({"id": id})).await;
    let mut all = subscribe(&world, &other, ALL, json!({})).await;
    assert_eq!(next_data(&mut one).await["capsule"]["state"], "RUNNING");
    assert_eq!(next_data(&mut all).await["capsules"]["capsule"]["id"], id.as_str());
    redis.kill();
    change(&world, "pauseCapsule", &id).await;
    // States on the way may be missed; where it ended may not.
    while next_data(&mut one).await["capsule"]["state"] != "PAUSED" {}
    while next_data(&mut all).await["capsules"]["capsule"]["state"] != "PAUSED" {}
    let planted = world.plant_held(CapsuleState::Running, Some(agent.host), None).await.to_string();
    while next_data(&mut all).await["capsules"]["capsule"]["id"] != planted.as_str() {}
    redis.start_again().await;
    change(&world, "resumeCapsule", &id).await;
    while next_data(&mut one).await["capsule"]["state"] != "RUNNING" {}
    other.shutdown().await;
    drop((one, all, other));
    world.end().await;
}
