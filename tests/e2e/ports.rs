//! What listens in a capsule is seen, while it listens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::graphql::{Client, Exec};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// Ports are looked at once a second in the guest.
const SEEN: Duration = Duration::from_secs(30);

/// Listens until it is killed.
const LISTENER: &str = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => $ARGV[0], LocalPort => $ARGV[1], \
     Listen => 5, ReuseAddr => 1) or die; while (my $c = $s->accept) { print $c \"here\\n\"; close $c }";

pub async fn ports_are_seen_while_they_are_open(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    ensure!(ports(client, &id).await?.is_empty(), "envd's own port is nobody's business");
    listen(client, &id, "0.0.0.0", 8123).await?;
    listen(client, &id, "127.0.0.1", 8124).await?;
    let seen = wait::until("both ports", SEEN, async || {
        let seen = ports(client, &id).await?;
        Ok((numbers(&seen) == [8123, 8124]).then_some(seen))
    })
    .await?;
    for port in &seen {
        ensure!(port["public"] == false && port["since"].is_string(), "{port}");
        ensure!(port["process"].is_null() || port["process"] == "perl", "{port}");
    }

    // They are the guest's, and go on with it.
    client.pause(&id).await?;
    ensure!(ports(client, &id).await?.is_empty(), "a paused capsule listens on nothing");
    client.resume(&id).await?;
    wait::until_true("both ports again", SEEN, async || {
        Ok(numbers(&ports(client, &id).await?) == [8123, 8124])
    })
    .await?;
    client.signal(&id, "listener-8123", "SIGKILL").await?;
    wait::until_true("one port only", SEEN, async || Ok(numbers(&ports(client, &id).await?) == [8124]))
        .await?;

    // To look is no activity: otherwise a dashboard would keep capsules awake for ever.
    client.set_timeout(&id, 3).await?;
    wait::until_true("paused while its ports are looked at", SEEN, async || {
        ports(client, &id).await?;
        Ok(client.capsule(&id).await?.context("the capsule")?.state == "PAUSED")
    })
    .await?;
    client.destroy(&id).await?;
    Ok(())
}

async fn listen(client: &Client, id: &str, address: &str, port: u16) -> Result<()> {
    let argv = ["perl", "-e", LISTENER, address, &port.to_string()];
    client.start(Exec::argv(id, &argv).with("tag", format!("listener-{port}"))).await?;
    Ok(())
}

async fn ports(client: &Client, id: &str) -> Result<Vec<Value>> {
    let query = "query($id: ID!) { capsule(id: $id) { ports { number process since public } } }";
    let found: Value = client.get("capsule", query, json!({ "id": id })).await?;
    found["ports"].as_array().cloned().context("ports")
}

fn numbers(ports: &[Value]) -> Vec<u64> {
    let mut numbers: Vec<u64> = ports.iter().filter_map(|port| port["number"].as_u64()).collect();
    numbers.sort_unstable();
    numbers
}
