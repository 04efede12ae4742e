//! Lists, page by page, and what they cost.

use serde_json::json;
use wrenn_entities::{CapsuleId, HostId, capsule::CapsuleState};
use wrenn_proto::agent::v1::CapsuleState as OnHost;

use crate::{
    agent::{PlayedAgent, arrived},
    on_both_databases,
    world::{Refused, World},
};

on_both_databases!(
    pages_join_up,
    filters_mean_what_they_say,
    a_list_costs_a_constant_number_of_statements,
    processes_are_asked_for_together,
    a_list_asks_each_host_once,
    what_fails_for_one_capsule_fails_for_it_alone,
    directories_of_a_list_are_listed_a_few_at_a_time,
);

const PAGE: &str = "query($first: Int, $after: String, $last: Int, $before: String) {
    capsules(first: $first, after: $after, last: $last, before: $before) {
        nodes { id } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
}";

async fn plant_many(world: &World, host: Option<HostId>, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(world.plant_held(CapsuleState::Paused, host, None).await.to_string());
    }
    ids
}

fn ids(page: &serde_json::Value) -> Vec<String> {
    let nodes = page["capsules"]["nodes"].as_array().expect("nodes");
    nodes.iter().map(|node| node["id"].as_str().expect("an id").to_owned()).collect()
}

async fn pages_join_up(world: &World) {
    let all = plant_many(world, None, 25).await;
    let mut seen = Vec::new();
    let mut after = serde_json::Value::Null;
    loop {
        let page = world.ask(PAGE, json!({"first": 10, "after": after})).await;
        seen.extend(ids(&page));
        let info = &page["capsules"]["pageInfo"];
        assert_eq!(info["hasPreviousPage"], !after.is_null());
        after = info["endCursor"].clone();
        if info["hasNextPage"] == false {
            break;
        }
    }
    assert_eq!(seen, all, "in the order in which they were made, none twice, none left out");

    let page = world.ask(PAGE, json!({"last": 10})).await;
    assert_eq!(ids(&page), all[15..]);
    assert_eq!(page["capsules"]["pageInfo"]["hasPreviousPage"], true);
    let before = page["capsules"]["pageInfo"]["startCursor"].clone();
    let page = world.ask(PAGE, json!({"last": 10, "before": before})).await;
    assert_eq!(ids(&page), all[5..15]);
    assert_eq!(ids(&world.ask(PAGE, json!({})).await).len(), 25, "50 unless told");

    for (variables, field) in [
        (json!({"first": 201}), "first"),
        (json!({"first": -1}), "first"),
        (json!({"first": 1, "last": 1}), "last"),
        (json!({"after": "nonsense"}), "after"),
    ] {
        let error = world.refused(PAGE, variables).await;
        assert_eq!(error.brief(), ("INVALID_INPUT", Some(field)));
    }
}

async fn filters_mean_what_they_say(world: &World) {
    let _agent = world.host("one").await;
    let create = "mutation($input: CreateCapsuleInput!) { createCapsule(input: $input) { capsule { id } } }";
    for (name, labels) in [
        ("web_1", json!({"tier": "web", "a'b\"c": "d"})),
        ("web-2", json!({"tier": "web"})),
        ("db", json!({"tier": "db"})),
    ] {
        world.ask(create, json!({"input": {"name": name, "labels": labels}})).await;
    }
    let query =
        "query($filter: CapsuleFilter) { capsules(filter: $filter) { nodes { id name } totalCount } }";
    let names = async |filter: serde_json::Value| {
        let found = world.ask(query, json!({"filter": filter})).await;
        let nodes = found["capsules"]["nodes"].as_array().expect("nodes").clone();
        assert_eq!(found["capsules"]["totalCount"], nodes.len());
        nodes.iter().map(|node| node["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(json!({"labels": {"tier": "web"}})).await, ["web_1", "web-2"]);
    assert_eq!(names(json!({"labels": {"tier": "web", "a'b\"c": "d"}})).await, ["web_1"]);
    assert_eq!(names(json!({"search": "WEB"})).await, ["web_1", "web-2"]);
    assert_eq!(names(json!({"search": "b_1"})).await, ["web_1"], "no wildcard");
    assert_eq!(names(json!({"search": "%"})).await, [""; 0]);
    assert_eq!(names(json!({"template": "minimal", "states": ["RUNNING"]})).await.len(), 3);
    assert_eq!(names(json!({"states": ["STOPPED"]})).await, [""; 0]);

    let db = world.ask(query, json!({"filter": {"search": "db"}})).await;
    let id = db["capsules"]["nodes"][0]["id"].clone();
    assert_eq!(names(json!({"search": id})).await, ["db"]);
    world.ask("mutation($id: ID!) { destroyCapsule(id: $id) { capsule { id } } }", json!({"id": id})).await;
    assert_eq!(names(json!({})).await, ["web_1", "web-2"], "what is stopped is not listed");
    assert_eq!(names(json!({"states": ["STOPPED"]})).await, ["db"]);
    let error = world.refused(query, json!({"filter": {"template": "none"}})).await;
    assert_eq!(error.brief(), ("NOT_FOUND", Some("template")));
}

async fn a_list_costs_a_constant_number_of_statements(world: &World) {
    let agent = world.host("one").await;
    plant_many(world, Some(agent.host), 3).await;
    let query = "{ capsules(first: 100) { nodes { id template { name team { name } } team { name } host { name } publicPorts } } }";
    let cost = async |query: &str, expected: usize| {
        let request = world.request(Some(&world.key), query, json!({})).await;
        world.reads();
        let response = world.schema.execute(request).await;
        let cost = world.reads();
        assert!(response.errors.is_empty(), "{response:?}");
        let nodes = response.data.into_json().expect("is JSON")["capsules"]["nodes"].clone();
        assert_eq!(nodes.as_array().expect("nodes").len(), expected);
        cost
    };
    let few = cost(query, 3).await;
    plant_many(world, Some(agent.host), 97).await;
    let many = cost(query, 100).await;
    // The page, templates, hosts, public ports and teams; the templates' teams come along with the capsules' or after them,
    // as the fields happen to run.
    for reads in [few, many] {
        assert!((5..=6).contains(&reads.len()), "{reads:#?}");
    }

    let plain = cost("{ capsules(first: 100) { nodes { id } } }", 100).await;
    let counted = cost("{ capsules(first: 100) { nodes { id } totalCount } }", 100).await;
    assert_eq!((plain.len(), counted.len()), (1, 2), "the total is counted only when asked for");
}

async fn processes_are_asked_for_together(world: &World) {
    let agent = world.host("one").await;
    for _ in 0..5 {
        world.create().await;
    }
    let request =
        world.request(Some(&world.key), "{ capsules { nodes { processes { pid } } } }", json!({})).await;
    world.reads();
    let response = world.schema.execute(request).await;
    assert_eq!(world.reads().len(), 1, "{response:?}");
    assert_eq!(agent.calls("processes"), 1);
    let nodes = response.data.into_json().expect("is JSON")["capsules"]["nodes"].clone();
    assert!(
        nodes.as_array().expect("nodes").iter().all(|node| node["processes"] == json!([{"pid": 7}])),
        "{nodes}"
    );
}

/// Running capsules of a host, which knows of them.
async fn plant_running(world: &World, agent: &PlayedAgent, count: usize) -> Vec<CapsuleId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = world.plant_held(CapsuleState::Running, Some(agent.host), None).await;
        agent.put(id, OnHost::Running);
        ids.push(id);
    }
    ids
}

async fn a_list_asks_each_host_once(world: &World) {
    let agents = [world.host("one").await, world.host("two").await];
    for agent in &agents {
        plant_running(world, agent, 50).await;
        agent.open_port(80);
    }
    let ask = async |query: &str| {
        let request = world.request(Some(&world.key), query, json!({})).await;
        world.reads();
        let response = world.schema.execute(request).await;
        assert!(response.errors.is_empty(), "{:?}", response.errors);
        let nodes = response.data.into_json().expect("is JSON")["capsules"]["nodes"].clone();
        (nodes.as_array().expect("nodes").clone(), world.reads())
    };
    let asked = |call: &str| agents.each_ref().map(|agent| agent.calls(call));

    let (nodes, reads) =
        ask("{ capsules(first: 100) { nodes { ports { number } processes { pid } host { name } } } }").await;
    assert_eq!(nodes.len(), 100);
    assert!(nodes.iter().all(|node| node["ports"] == json!([{"number": 80}])), "{nodes:?}");
    assert!(nodes.iter().all(|node| node["processes"] == json!([{"pid": 7}])), "{nodes:?}");
    assert_eq!((asked("ports"), asked("processes")), ([1, 1], [1, 1]));
    assert_eq!(reads.len(), 3, "the page, its hosts, and which ports are public: {reads:#?}");

    let (nodes, reads) = ask(
        "{ capsules(first: 100) { nodes { metrics(range: M5) { at cpuPercent memoryBytes diskBytes } } } }",
    )
    .await;
    assert_eq!(nodes.len(), 100);
    assert!(nodes.iter().all(|node| node["metrics"].as_array().is_some_and(|points| points.len() == 3)));
    assert_eq!((asked("metrics"), reads.len()), ([1, 1], 1));
    // Each range is another question.
    let (nodes, _) = ask(
        "{ capsules(first: 40) { nodes { m5: metrics(range: M5) { at } h1: metrics(range: H1) { at } } } }",
    )
    .await;
    assert!(nodes.iter().all(|node| node["m5"] == node["h1"]), "{nodes:?}");
    assert_eq!(asked("metrics")[0], 3);
}

async fn what_fails_for_one_capsule_fails_for_it_alone(world: &World) {
    let agents = [world.host("one").await, world.host("two").await];
    let (ids, other) = (plant_running(world, &agents[0], 3).await, plant_running(world, &agents[1], 1).await);
    agents[0].put(ids[0], OnHost::Paused);
    let query = "{ capsules { nodes { id processes { pid } } } }";
    let seen = world.ask(query, json!({})).await;
    let none: Vec<_> = seen["capsules"]["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .filter(|node| node["processes"] == json!([]))
        .map(|node| node["id"].clone())
        .collect();
    assert_eq!(none, [json!(ids[0].to_string())], "it does not run, whatever its row says");

    // One that its host has never heard of; then a whole host that is away.
    agents[0].forget(ids[1]);
    let query = "query($a: ID!, $b: ID!, $c: ID!) {
        a: capsule(id: $a) { processes { pid } } b: capsule(id: $b) { processes { pid } }
        c: capsule(id: $c) { processes { pid } } }";
    let variables = json!({"a": ids[1].to_string(), "b": ids[2].to_string(), "c": other[0].to_string()});
    let running = json!({"processes": [{"pid": 7}]});
    for (away, code) in [(false, "NOT_FOUND"), (true, "UNAVAILABLE")] {
        if away {
            agents[0].kill();
            agents[0].killed().await;
        }
        let response = world.execute(Some(&world.key), query, variables.clone()).await;
        assert!(response.errors.iter().all(|error| Refused::of(error).code == code), "{:?}", response.errors);
        assert_eq!(response.errors.len(), if away { 2 } else { 1 }, "{:?}", response.errors);
        let data = response.data.into_json().expect("is JSON");
        let expected =
            json!({"a": null, "b": if away { json!(null) } else { running.clone() }, "c": running});
        assert_eq!(data, expected);
    }
}

async fn directories_of_a_list_are_listed_a_few_at_a_time(world: &World) {
    let agent = world.host("one").await;
    plant_running(world, &agent, 40).await;
    agent.with_files(|files| files.make_directory("/srv")).expect("makes it");
    let gate = agent.gate("list_directory");
    let query = "{ capsules(first: 40) { nodes { files(path: \"/srv\") { name } } } }";
    let asked = world.ask(query, json!({}));
    let seen = async {
        arrived(&agent, "list_directory", 16).await;
        // Whatever else were to come would have come before what this asks for.
        world.ask("{ capsules(first: 1) { nodes { processes { pid } } } }", json!({})).await;
        let at_once = agent.calls("list_directory");
        gate.add_permits(40);
        at_once
    };
    let (listed, at_once) = tokio::join!(asked, seen);
    assert_eq!(at_once, 16);
    assert_eq!(listed["capsules"]["nodes"].as_array().map(Vec::len), Some(40));
    assert_eq!(agent.calls("list_directory"), 40);
}
