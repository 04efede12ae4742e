//! The manner of the API: connections, nodes, filters, repeats, and changes at the same time.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::graphql::{Client, Exec, Failure};
use wrenn_tests::stack::Stack;

const PAGE: &str = "query($first: Int, $after: String, $last: Int, $before: String, $filter: CapsuleFilter) {
    capsules(first: $first, after: $after, last: $last, before: $before, filter: $filter) {
        totalCount
        edges { cursor node { id } }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
}";

/// Capsules of one label, in the order they were made.
async fn several(client: &Client, label: &str, count: usize) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(client.create(json!({ "labels": { "test": label } })).await?.id);
    }
    Ok(ids)
}

async fn destroy(client: &Client, ids: &[String]) -> Result<()> {
    for id in ids {
        client.destroy(id).await?;
    }
    Ok(())
}

fn ids_of(page: &Value) -> Result<Vec<String>> {
    let edges = page["edges"].as_array().context("edges")?;
    edges.iter().map(|edge| edge["node"]["id"].as_str().map(str::to_owned).context("a node's id")).collect()
}

pub async fn pages_forwards_and_backwards(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let made = several(client, "pages", 5).await?;
    let filter = json!({ "labels": { "test": "pages" } });
    let page = async |variables: Value| -> Result<Value> {
        let mut variables = variables;
        variables["filter"] = filter.clone();
        client.get("capsules", PAGE, variables).await
    };
    let whole = page(json!({ "first": 100 })).await?;
    ensure!(whole["totalCount"] == 5 && whole["pageInfo"]["hasNextPage"] == false, "{whole}");
    let order = ids_of(&whole)?;
    ensure!(order.iter().collect::<BTreeSet<_>>() == made.iter().collect::<BTreeSet<_>>(), "{order:?}");

    let first = page(json!({ "first": 2 })).await?;
    ensure!(ids_of(&first)? == order[..2] && first["pageInfo"]["hasNextPage"] == true, "{first}");
    ensure!(first["totalCount"] == 5, "the count is of the page: {first}");
    let second = page(json!({ "first": 2, "after": first["pageInfo"]["endCursor"] })).await?;
    ensure!(ids_of(&second)? == order[2..4], "{second}");
    // A row that comes in between disturbs nobody who is paging.
    let late = several(client, "pages-other", 1).await?;
    let third = page(json!({ "first": 2, "after": second["pageInfo"]["endCursor"] })).await?;
    ensure!(ids_of(&third)? == order[4..] && third["pageInfo"]["hasNextPage"] == false, "{third}");

    let last = page(json!({ "last": 2 })).await?;
    ensure!(ids_of(&last)? == order[3..] && last["pageInfo"]["hasPreviousPage"] == true, "{last}");
    let before = page(json!({ "last": 2, "before": last["pageInfo"]["startCursor"] })).await?;
    ensure!(ids_of(&before)? == order[1..3], "{before}");

    for variables in
        [json!({ "first": 201 }), json!({ "first": -1 }), json!({ "first": 2, "after": "nonsense" })]
    {
        let refused = client.refused(PAGE, variables.clone()).await?;
        ensure!(refused.first().code() == "INVALID_INPUT", "{variables}: {refused}");
    }
    destroy(client, &made).await?;
    destroy(client, &late).await
}

pub async fn nodes_of_every_kind(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let capsule = client.create(json!({})).await?;
    let query = "query($id: ID!) { node(id: $id) { __typename id ... on Capsule { state } ... on Template { name } } }";
    let node: Value = client.get("node", query, json!({ "id": capsule.id })).await?;
    ensure!(node["__typename"] == "Capsule" && node["state"] == "RUNNING", "{node}");
    let node: Value = client.get("node", query, json!({ "id": capsule.template.id })).await?;
    ensure!(node["__typename"] == "Template" && node["name"] == "minimal", "{node}");
    let nobody = client.refused(query, json!({ "id": "cl-0000000000000000000000001" })).await?;
    ensure!(nobody.first().code() == "NOT_FOUND", "{nobody}");
    let refused = client.refused(query, json!({ "id": "what-is-this" })).await?;
    ensure!(refused.first().code() == "INVALID_INPUT" && refused.first().field() == Some("id"), "{refused}");

    let viewer: Value =
        client.get("viewer", "{ viewer { team { id name } apiKey { id name } } }", json!({})).await?;
    ensure!(viewer["team"]["id"].as_str().is_some_and(|id| id.starts_with("team-")), "{viewer}");
    let templates: Value =
        client.get("templates", "{ templates(first: 10) { edges { node { id name } } } }", json!({})).await?;
    let found = templates["edges"].as_array().context("edges")?;
    ensure!(found.iter().any(|edge| edge["node"]["name"] == "minimal"), "{templates}");
    client.destroy(&capsule.id).await?;
    Ok(())
}

pub async fn filters_capsules(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let labels = json!({ "test": "filters", "tier": "one" });
    let one = client.create(json!({ "name": "filtered-one", "labels": labels })).await?.id;
    let two = client.create(json!({ "name": "filtered-two", "labels": { "test": "filters" } })).await?.id;
    client.pause(&two).await?;
    let cases = [
        (json!({ "labels": { "test": "filters" } }), vec![&one, &two]),
        (json!({ "labels": { "test": "filters", "tier": "one" } }), vec![&one]),
        (json!({ "labels": { "test": "filters" }, "states": ["PAUSED"] }), vec![&two]),
        (json!({ "labels": { "test": "filters" }, "states": ["PAUSED", "RUNNING"] }), vec![&one, &two]),
        (json!({ "search": "filtered-t" }), vec![&two]),
        (json!({ "labels": { "test": "filters" }, "template": "minimal" }), vec![&one, &two]),
        (json!({ "labels": { "test": "filter_" } }), vec![]),
        (json!({ "search": "filtered%" }), vec![]),
    ];
    for (filter, expected) in cases {
        let found = client.capsules(filter.clone()).await?;
        let found: BTreeSet<&String> = found.iter().map(|capsule| &capsule.id).collect();
        ensure!(found == expected.into_iter().collect(), "{filter} found {found:?}");
    }
    destroy(client, &[one, two]).await
}

pub async fn creates_once_per_idempotency_key(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let input = json!({ "idempotencyKey": "only-once", "labels": { "test": "idempotency" } });
    // At the same time, and again afterwards.
    let (one, two) =
        tokio::join!(client.create_as_answered(input.clone()), client.create_as_answered(input.clone()));
    let (one, two) = (one?, two?);
    let three = client.create_as_answered(input).await?;
    ensure!(one.id == two.id && two.id == three.id, "{} {} {}", one.id, two.id, three.id);
    let made = client.capsules(json!({ "labels": { "test": "idempotency" } })).await?;
    ensure!(made.len() == 1 && made[0].state == "RUNNING", "{made:?}");
    // The same key for something else is a mistake of the caller's.
    let other = json!({ "idempotencyKey": "only-once", "memoryMib": 512 });
    let refused = client.create_as_answered(other).await.err().context("a key was used for two things")?;
    let refused = refused.downcast::<Failure>()?;
    ensure!(["CONFLICT", "INVALID_INPUT"].contains(&refused.first().code()), "{refused}");
    client.destroy(&one.id).await?;
    Ok(())
}

/// Many callers change one capsule at once: each gets the change or a clear refusal, and it ends well.
pub async fn concurrent_changes_lose_nothing(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo survives > /root/file").await?;
    for round in 0..3 {
        let pauses = futures_util::future::join_all((0..4).map(|_| client.pause(&id))).await;
        judge(pauses, "PAUSED").with_context(|| format!("pausing, round {round}"))?;
        ensure!(client.capsule(&id).await?.context("the capsule")?.state == "PAUSED");
        let resumes = futures_util::future::join_all((0..4).map(|_| client.resume(&id))).await;
        judge(resumes, "RUNNING").with_context(|| format!("resuming, round {round}"))?;
        ensure!(client.sh(&id, "cat /root/file").await? == "survives");
    }
    let destroys = futures_util::future::join_all((0..4).map(|_| client.destroy(&id))).await;
    judge(destroys, "STOPPED").context("destroying")?;
    ensure!(stack.vmm_of(&id).is_none());
    Ok(())
}

fn judge(outcomes: Vec<Result<wrenn_tests::graphql::Capsule>>, state: &str) -> Result<()> {
    let mut carried_out = 0;
    for outcome in outcomes {
        match outcome {
            Ok(capsule) => {
                ensure!(capsule.state == state, "answered with {capsule:?}");
                carried_out += 1;
            }
            Err(error) => {
                let failure = error.downcast::<Failure>()?;
                ensure!(failure.first().code() == "CONFLICT", "{failure}");
            }
        }
    }
    ensure!(carried_out > 0, "every caller was refused");
    Ok(())
}

pub async fn says_where_the_time_went(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let exec = "mutation($input: ExecInput!) { exec(input: $input) { exitCode } }";
    let input = Exec::shell(&id, "sleep 1").input();
    let timing = client.timing(exec, json!({ "input": input })).await?;
    let ms = |part: &str| timing[part].as_f64().with_context(|| format!("{part} in {timing}"));
    ensure!(ms("guestMs")? >= 1000.0, "it is the guest that sleeps: {timing}");
    ensure!(ms("agentMs")? > 0.0 && ms("databaseMs")? > 0.0, "{timing}");
    // One after the other; each is rounded.
    let parts = ms("guestMs")? + ms("agentMs")? + ms("databaseMs")?;
    ensure!(parts <= ms("totalMs")? + 0.01, "{timing}");

    let look = "query($id: ID!) { capsule(id: $id) { ports { number } processes { pid } metrics(range: M5) { at } } }";
    let timing = client.timing(look, json!({ "id": id })).await?;
    ensure!(timing["agentCalls"] == 3, "{timing}");
    ensure!(timing["guestMs"].as_f64().is_some_and(|guest| guest > 0.0), "{timing}");
    // What its host knows itself.
    let look = "query($id: ID!) { capsule(id: $id) { metrics(range: M5) { at } } }";
    let timing = client.timing(look, json!({ "id": id })).await?;
    ensure!((&timing["agentCalls"], &timing["guestMs"]) == (&json!(1), &json!(0.0)), "{timing}");
    client.destroy(&id).await?;
    Ok(())
}
