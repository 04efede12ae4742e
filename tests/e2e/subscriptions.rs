//! What is watched is shown as it is, then as it changes.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wrenn_tests::graphql::{Capsule, Exec, Frame, Socket, Subscription};
use wrenn_tests::stack::Stack;

const SOON: Duration = Duration::from_secs(20);

pub async fn a_capsule_first_then_its_changes(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let mut watch = client.watch_capsule(&id).await?;
    let first = next_capsule(&mut watch).await?;
    ensure!(first.id == id && first.state == "RUNNING", "{first:?}");

    client.pause(&id).await?;
    let passed = until_state(&mut watch, "PAUSED").await?;
    ensure!(
        passed.iter().all(|state| ["RUNNING", "PAUSING", "PAUSED"].contains(&state.as_str())),
        "{passed:?}"
    );
    client.resume(&id).await?;
    let passed = until_state(&mut watch, "RUNNING").await?;
    ensure!(
        passed.iter().all(|state| ["PAUSED", "RESUMING", "RUNNING"].contains(&state.as_str())),
        "{passed:?}"
    );
    client.set_timeout(&id, 1234).await?;
    loop {
        if next_capsule(&mut watch).await?.timeout_sec == 1234 {
            break;
        }
    }
    client.destroy(&id).await?;
    until_state(&mut watch, "STOPPED").await?;
    Ok(())
}

async fn next_capsule(watch: &mut Subscription) -> Result<Capsule> {
    Capsule::from_event(&watch.next_within(SOON).await?.context("the subscription ended")?)
}

/// The states on the way to `state`, which is the last of them.
async fn until_state(watch: &mut Subscription, state: &str) -> Result<Vec<String>> {
    let mut passed = Vec::new();
    while passed.last().is_none_or(|last| last != state) {
        passed.push(
            next_capsule(watch).await.with_context(|| format!("on the way to {state}: {passed:?}"))?.state,
        );
    }
    Ok(passed)
}

pub async fn capsules_come_and_go(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let labels = json!({ "test": "watched" });
    let present = client.create(json!({ "labels": labels })).await?.id;
    let query = "subscription($filter: CapsuleFilter) {
        capsules(filter: $filter) { capsule { id state } removedId }
    }";
    let filter = json!({ "labels": labels, "states": ["PENDING", "STARTING", "RUNNING", "STOPPING"] });
    let mut watch = client.subscribe(query, json!({ "filter": filter })).await?;
    let first = change(&mut watch).await?;
    ensure!(first["capsule"]["id"] == present && first["capsule"]["state"] == "RUNNING", "{first}");

    // Neither another label nor another team's capsule is shown.
    let other = client.create(json!({ "labels": { "test": "unwatched" } })).await?.id;
    let foreign = stack.platform().create(json!({ "labels": labels })).await?.id;
    let new = client.create(json!({ "labels": labels })).await?.id;
    loop {
        let seen = change(&mut watch).await?;
        ensure!(seen["capsule"]["id"] == new, "{seen} where only {new} changes");
        if seen["capsule"]["state"] == "RUNNING" {
            break;
        }
    }
    client.destroy(&present).await?;
    loop {
        let seen = change(&mut watch).await?;
        if seen["removedId"] == present {
            break;
        }
        ensure!(seen["capsule"]["id"] == present, "{seen} where only {present} changes");
    }
    for (owner, id) in [(client, &other), (stack.platform(), &foreign), (client, &new)] {
        owner.destroy(id).await?;
    }
    Ok(())
}

async fn change(watch: &mut Subscription) -> Result<Value> {
    let mut data = watch.next_within(SOON).await?.context("the subscription ended")?;
    Ok(data["capsules"].take())
}

const WATCH: &str = "subscription { capsules { removedId } }";

/// Without a good key nothing is subscribed to, and the protocol's own rules are kept.
pub async fn a_socket_wants_a_key(stack: Arc<Stack>) -> Result<()> {
    let url = stack.client().websocket_url();
    let key = stack.client().key().context("a key")?;
    let mut socket = Socket::open(&url, json!({ "apiKey": "wrn_wrong" })).await?;
    ensure!(socket.admitted().await? == Some(4403), "a wrong key was let in");
    // Whoever shows no key may connect, as some of the schema needs none; this does.
    let mut socket = Socket::open(&url, json!({})).await?;
    match socket.admitted().await? {
        Some(code) => ensure!(code == 4403, "closed with {code}"),
        None => {
            socket.start("1", WATCH, json!({})).await?;
            let Frame::Error { failure, .. } = next(&mut socket).await? else {
                bail!("let in without a key")
            };
            ensure!(failure.first().code() == "UNAUTHENTICATED", "{failure}");
        }
    }
    for parameters in [json!({ "apiKey": key }), json!({ "authorization": format!("Bearer {key}") })] {
        let mut socket = Socket::open(&url, parameters).await?;
        ensure!(socket.admitted().await?.is_none(), "a good key was refused");
        socket.start("1", WATCH, json!({})).await?;
        socket.start("1", WATCH, json!({})).await?;
        ensure!(closed(&mut socket).await? == 4409, "two operations of one id");
    }
    // Nothing may be asked before the server has answered who is asking.
    let mut socket = Socket::open(&url, json!({ "apiKey": "wrn_wrong" })).await?;
    socket.start("1", WATCH, json!({})).await?;
    let code = closed(&mut socket).await?;
    ensure!(code == 4401 || code == 4403, "closed with {code}");
    Ok(())
}

async fn next(socket: &mut Socket) -> Result<Frame> {
    tokio::time::timeout(SOON, socket.next()).await.context("the server says nothing")?
}

/// The code the server closes with.
async fn closed(socket: &mut Socket) -> Result<u16> {
    loop {
        match next(socket).await? {
            Frame::Closed { code, .. } => return Ok(code),
            Frame::Next { .. } | Frame::Complete { .. } => {}
            Frame::Error { failure, .. } => bail!("{failure} where the socket should be closed"),
        }
    }
}

/// `capsule` and `capsules` show ports as they open and close, to those who ask for them.
pub async fn ports_that_open_and_close_are_changes(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({ "labels": { "test": "ports-watched" } })).await?.id;
    let of_one = "subscription($id: ID!) { capsule(id: $id) { ports { number } } }";
    let of_many =
        "subscription($filter: CapsuleFilter) { capsules(filter: $filter) { capsule { ports { number } } } }";
    let filter = json!({ "labels": { "test": "ports-watched" } });
    let mut one = client.subscribe(of_one, json!({ "id": id })).await?;
    let mut many = client.subscribe(of_many, json!({ "filter": filter })).await?;
    let mut both = async |wanted: Value| -> Result<()> {
        while one.next_within(SOON).await?.context("the subscription ended")?["capsule"]["ports"] != wanted {}
        while change(&mut many).await?["capsule"]["ports"] != wanted {}
        Ok(())
    };
    both(json!([])).await?;
    let listener = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8125, Listen => 5) or die; sleep 1000";
    let (_, tag) = client.start(Exec::argv(&id, &["perl", "-e", listener])).await?;
    both(json!([{ "number": 8125 }])).await?;
    client.signal(&id, &tag, "SIGKILL").await?;
    both(json!([])).await?;
    client.destroy(&id).await?;
    Ok(())
}

/// The client that most programs use: `tests/graphql-ws` says what it is asked to do.
pub async fn the_client_from_npm_is_served(stack: Arc<Stack>) -> Result<()> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphql-ws");
    ensure!(package.join("node_modules").is_dir(), "run `npm ci` in {} first", package.display());
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let flood = 64 * 1024 * 1024;
    let output = tokio::process::Command::new("node")
        .args(["--test", "--test-concurrency=1", "--test-reporter=spec", "client.test.mjs"])
        .current_dir(&package)
        .env("WRENN_URL", client.websocket_url().replacen("ws", "http", 1).trim_end_matches("/graphql"))
        .env("WRENN_API_KEY", client.key().context("a key")?)
        .env("WRENN_CAPSULE", &id)
        .env("WRENN_FLOOD", format!("head -c {flood} /dev/zero"))
        .env("WRENN_FLOOD_BYTES", flood.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(10 * SOON, output).await.context("it does not end")?.context("node")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    client.destroy(&id).await?;
    Ok(())
}
