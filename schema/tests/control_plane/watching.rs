//! Subscriptions to capsules.

use serde_json::json;
use wrenn_entities::capsule::CapsuleState;

use crate::{
    on_both_databases,
    world::{CREATE, Refused, World, id_of, next, next_data},
};

on_both_databases!(
    one_is_shown_and_then_its_changes,
    a_list_is_shown_and_then_its_changes,
    who_falls_behind_sees_the_present,
);

const CHANGES: &str = "subscription($filter: CapsuleFilter) {
    capsules(filter: $filter) { capsule { id state timeoutSec } removedId }
}";

async fn change(world: &World, verb: &str, id: &str) {
    world
        .ask(&format!("mutation($id: ID!) {{ {verb}(id: $id) {{ capsule {{ id }} }} }}"), json!({"id": id}))
        .await;
}

async fn one_is_shown_and_then_its_changes(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = "subscription($id: ID!) { capsule(id: $id) { state template { name } } }";
    let mut seen = Box::pin(world.subscribe(query, json!({"id": id})).await);
    assert_eq!(
        next_data(&mut seen).await["capsule"],
        json!({"state": "RUNNING", "template": {"name": "minimal"}})
    );
    change(world, "pauseCapsule", &id).await;
    change(world, "destroyCapsule", &id).await;
    for state in ["PAUSING", "PAUSED", "STOPPING", "STOPPED"] {
        assert_eq!(next_data(&mut seen).await["capsule"]["state"], state);
    }
    assert!(next(&mut seen).await.is_none(), "it ends with the capsule");

    let mut none = Box::pin(world.subscribe(query, json!({"id": "cl-0000000000000000000000000"})).await);
    let error = Refused::of(&next(&mut none).await.expect("an answer").errors[0]);
    assert_eq!(error.code, "NOT_FOUND");
}

async fn a_list_is_shown_and_then_its_changes(world: &World) {
    let _agent = world.host("one").await;
    let made = async |labels: serde_json::Value| {
        let made = world.ask(CREATE, json!({"input": {"labels": labels}})).await;
        id_of(&made["createCapsule"]["capsule"]).to_string()
    };
    let mine = made(json!({"of": "me"})).await;
    let _theirs = made(json!({"of": "you"})).await;
    let filter = json!({"filter": {"labels": {"of": "me"}, "states": ["RUNNING", "PAUSED"]}});
    let mut seen = Box::pin(world.subscribe(CHANGES, filter).await);
    let first = next_data(&mut seen).await;
    assert_eq!(first["capsules"]["capsule"]["id"], mine.as_str());

    // `pausing` is not among the states asked for: the capsule goes from the list, and comes back.
    change(world, "pauseCapsule", &mine).await;
    assert_eq!(next_data(&mut seen).await["capsules"], json!({"capsule": null, "removedId": mine}));
    assert_eq!(next_data(&mut seen).await["capsules"]["capsule"]["state"], "PAUSED");
    let second = made(json!({"of": "me"})).await;
    assert_eq!(next_data(&mut seen).await["capsules"]["capsule"]["id"], second.as_str());
}

async fn who_falls_behind_sees_the_present(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let mut seen = Box::pin(world.subscribe(CHANGES, json!({})).await);
    assert_eq!(next_data(&mut seen).await["capsules"]["capsule"]["timeoutSec"], 0);
    let other = world.plant_held(CapsuleState::Running, Some(agent.host), None).await;
    let query =
        "mutation($id: ID!, $s: Int!) { setCapsuleTimeout(id: $id, timeoutSec: $s) { capsule { id } } }";
    // More changes than the queue of a subscriber holds.
    for second in 1..=1100 {
        world.ask(query, json!({"id": id.to_string(), "s": second})).await;
    }
    let mut latest = 0;
    let mut found_other = false;
    while latest < 1100 || !found_other {
        let change = next_data(&mut seen).await;
        let capsule = &change["capsules"]["capsule"];
        if capsule["id"] == other.to_string().as_str() {
            found_other = true;
        } else {
            let now = capsule["timeoutSec"].as_i64().expect("a number");
            assert!(now > latest, "never back: {now} after {latest}");
            latest = now;
        }
    }
}
