//! What listens in capsules, and what they use.

use async_graphql::Response;
use futures_util::Stream;
use serde_json::{Value, json};
use wrenn_entities::capsule::CapsuleState;
use wrenn_proto::agent::v1::CapsuleState as OnHost;

use crate::{
    agent::arrived,
    on_both_databases,
    world::{Refused, World, next, next_data},
};

on_both_databases!(
    ports_are_shown,
    ports_are_watched,
    ports_of_a_list_are_watched,
    ports_are_asked_for_together,
    load_is_shown,
    load_is_watched,
);

const PORTS: &str = "query($id: ID!) { capsule(id: $id) { ports { number process since public } } }";
const METRICS: &str = "query($id: ID!, $range: MetricsRange!) {
    capsule(id: $id) { metrics(range: $range) { at cpuPercent memoryBytes diskBytes } }
}";

async fn ports_are_shown(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    agent.open_port(3000);
    let seen = world.ask(PORTS, json!({"id": id.to_string()})).await;
    assert_eq!(
        seen["capsule"]["ports"],
        json!([{"number": 3000, "process": "node", "since": "2023-11-14T22:13:20+00:00", "public": false}])
    );
    // Paused on its host, and nobody has learned of it yet.
    agent.put(id, OnHost::Paused);
    assert_eq!(world.ask(PORTS, json!({"id": id.to_string()})).await["capsule"]["ports"], json!([]));
    let stopped = world.plant_held(CapsuleState::Stopped, Some(agent.host), None).await;
    assert_eq!(world.ask(PORTS, json!({"id": stopped.to_string()})).await["capsule"]["ports"], json!([]));
    assert_eq!(agent.calls("ports"), 2);
}

async fn ports_are_watched(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    agent.open_port(22);
    let query = "subscription($id: ID!) { capsule(id: $id) { state ports { number } } }";
    let mut seen = Box::pin(world.subscribe(query, json!({"id": id})).await);
    let shown = |state: &str, ports: &[u32]| {
        let ports: Vec<_> = ports.iter().map(|number| json!({"number": number})).collect();
        json!({"state": state, "ports": ports})
    };
    assert_eq!(next_data(&mut seen).await["capsule"], shown("RUNNING", &[22]));
    agent.open_port(3000);
    assert_eq!(next_data(&mut seen).await["capsule"], shown("RUNNING", &[22, 3000]));
    agent.close_port(22);
    assert_eq!(next_data(&mut seen).await["capsule"], shown("RUNNING", &[3000]));
    let change = async |verb: &str| {
        let query = format!("mutation($id: ID!) {{ {verb}(id: $id) {{ capsule {{ id }} }} }}");
        world.ask(&query, json!({"id": id})).await
    };
    change("pauseCapsule").await;
    assert_eq!(next_data(&mut seen).await["capsule"], shown("PAUSING", &[]));
    assert_eq!(next_data(&mut seen).await["capsule"], shown("PAUSED", &[]));
    agent.close_port(3000);
    change("resumeCapsule").await;
    assert_eq!(next_data(&mut seen).await["capsule"], shown("RESUMING", &[]));
    assert_eq!(next_data(&mut seen).await["capsule"], shown("RUNNING", &[]));
    agent.open_port(80);
    assert_eq!(
        next_data(&mut seen).await["capsule"],
        shown("RUNNING", &[80]),
        "its next life is watched too"
    );
    assert_eq!(agent.calls("watch_ports"), 2);

    // Who does not look at ports costs the host no stream of them.
    let query = "subscription($id: ID!) { capsule(id: $id) { state } }";
    let mut plain = Box::pin(world.subscribe(query, json!({"id": id})).await);
    assert_eq!(next_data(&mut plain).await["capsule"], json!({"state": "RUNNING"}));
    assert_eq!(agent.calls("watch_ports"), 2);
}

/// The capsule as it is shown next; one whose host is slow to begin to tell of ports is shown twice.
async fn next_capsule(list: &mut (impl Stream<Item = Response> + Unpin), before: &Value) -> Value {
    loop {
        let capsule = next_data(list).await["capsules"]["capsule"].take();
        if capsule != *before {
            return capsule;
        }
    }
}

async fn ports_of_a_list_are_watched(world: &World) {
    let running = |ports: Value| json!({"state": "RUNNING", "ports": ports});
    let (closed, open) = (running(json!([])), running(json!([{"number": 3000}])));
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = "subscription { capsules { capsule { state ports { number } } removedId } }";
    let mut lists = Vec::new();
    for _ in 0..20 {
        let mut list = Box::pin(world.subscribe(query, json!({})).await);
        assert_eq!(next_data(&mut list).await["capsules"], json!({"capsule": closed, "removedId": null}));
        lists.push(list);
    }
    agent.open_port(3000);
    for list in &mut lists {
        assert_eq!(next_capsule(list, &closed).await, open);
    }
    world.ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id})).await;
    for list in &mut lists {
        for state in ["PAUSING", "PAUSED"] {
            assert_eq!(next_capsule(list, &open).await, json!({"state": state, "ports": []}));
        }
    }
    world.ask("mutation($id: ID!) { resumeCapsule(id: $id) { capsule { id } } }", json!({"id": id})).await;
    for list in &mut lists {
        assert_eq!(next_data(list).await["capsules"]["capsule"]["state"], "RESUMING");
        assert_eq!(next_data(list).await["capsules"]["capsule"], open);
    }
    agent.close_port(3000);
    for list in &mut lists {
        assert_eq!(next_capsule(list, &open).await, closed);
    }
    assert_eq!(agent.calls("watch_ports"), 2, "one stream for each of its lives, however many watch");
    drop(lists);
    let mut again = Box::pin(world.subscribe(query, json!({})).await);
    next_data(&mut again).await;
    arrived(&agent, "watch_ports", 3).await;
}

async fn ports_are_asked_for_together(world: &World) {
    let agent = world.host("one").await;
    for _ in 0..5 {
        world.create().await;
    }
    agent.open_port(80);
    let query = "{ capsules { nodes { ports { number public } publicPorts } } }";
    let request = world.request(Some(&world.key), query, json!({})).await;
    world.reads();
    let response = world.schema.execute(request).await;
    assert!(response.errors.is_empty(), "{response:?}");
    assert_eq!(world.reads().len(), 2, "the page, and which ports are public");
    assert_eq!(agent.calls("ports"), 1);
}

async fn load_is_shown(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let variables = |range: &str| json!({"id": id.to_string(), "range": range});
    let seen = world.ask(METRICS, variables("M5")).await;
    let points = seen["capsule"]["metrics"].as_array().expect("points").clone();
    assert_eq!(points.len(), 3);
    assert_eq!(
        points[0],
        json!({
            "at": "1970-01-01T00:00:01+00:00", "cpuPercent": 150.5, "memoryBytes": "8589934592", "diskBytes": "4096",
        })
    );
    let paused = world.plant_held(CapsuleState::Paused, Some(agent.host), None).await;
    let seen = world.ask(METRICS, json!({"id": paused.to_string(), "range": "H24"})).await;
    assert_eq!(seen["capsule"]["metrics"].as_array().expect("points").len(), 3);
    for (state, code) in [
        (CapsuleState::Stopped, "NOT_FOUND"),
        (CapsuleState::Error, "NOT_FOUND"),
        (CapsuleState::Missing, "UNAVAILABLE"),
    ] {
        let id = world.plant_held(state, Some(agent.host), None).await;
        let error = world.refused(METRICS, json!({"id": id.to_string(), "range": "H1"})).await;
        assert_eq!(error.code, code, "{state:?}");
    }
    assert_eq!(world.refused(METRICS, variables("M7")).await.brief(), ("INVALID_INPUT", Some("range")));
}

async fn load_is_watched(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = "subscription($id: ID!) { capsuleMetrics(id: $id, range: M10) { at } }";
    let mut points = Box::pin(world.subscribe(query, json!({"id": id})).await);
    // Three that are known, of which the last is told again at once, then the new ones.
    for second in 1..=5 {
        let at = format!("1970-01-01T00:00:0{second}+00:00");
        assert_eq!(next_data(&mut points).await["capsuleMetrics"]["at"], at.as_str());
    }
    assert!(next(&mut points).await.is_none(), "it ends with the capsule's life");
    arrived(&agent, "watch_metrics", 1).await;

    world.ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id})).await;
    let mut none = Box::pin(world.subscribe(query, json!({"id": id})).await);
    let error = Refused::of(&next(&mut none).await.expect("an answer").errors[0]);
    assert_eq!(error.code, "FAILED_PRECONDITION");
}
