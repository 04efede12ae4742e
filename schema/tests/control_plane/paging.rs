//! Lists, page by page, and what they cost.

use serde_json::json;
use wrenn_entities::{HostId, capsule::CapsuleState};

use crate::{on_both_databases, world::World};

on_both_databases!(
    pages_join_up,
    filters_mean_what_they_say,
    a_list_costs_a_constant_number_of_statements,
    processes_are_asked_for_together,
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
    assert_eq!(agent.calls("processes"), 5);
    let nodes = response.data.into_json().expect("is JSON")["capsules"]["nodes"].clone();
    assert!(
        nodes.as_array().expect("nodes").iter().all(|node| node["processes"] == json!([{"pid": 7}])),
        "{nodes}"
    );
}
