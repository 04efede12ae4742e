//! Several hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::graphql::{Exec, Failure};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

const PATIENCE: Duration = Duration::from_secs(60);

/// Two agents on one machine, each with a directory and slots of its own: capsules are spread, come back on the
/// host that holds them, and the death of one agent is nothing to the other.
pub async fn two_on_one_machine(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let mut of_host: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..6 {
        let capsule = client.create(json!({})).await?;
        let host = capsule.host.context("a running capsule has a host")?;
        ensure!(stack.host_of(&capsule.id)?.id() == host.id, "{} is not where it is said to be", capsule.id);
        of_host.entry(host.id).or_default().push(capsule.id);
    }
    ensure!(of_host.len() == 2, "all capsules went to one host: {of_host:?}");
    for (host, ids) in &of_host {
        let id = &ids[0];
        client.sh(id, "echo kept > /run/in-memory").await?;
        client.pause(id).await?;
        let resumed = client.resume(id).await?;
        ensure!(resumed.host.is_some_and(|resumed| resumed.id == *host), "{id} moved");
        ensure!(client.sh(id, "cat /run/in-memory").await? == "kept");
    }

    let [dead, alive] = stack.hosts() else { anyhow::bail!("two hosts are wanted") };
    dead.kill9().await?;
    let (lost, kept) = (&of_host[dead.id()], &of_host[alive.id()]);
    for id in kept {
        ensure!(client.sh(id, "echo here").await? == "here");
    }
    let refused = client.exec(Exec::shell(&lost[0], "true")).await.err().context("exec without an agent")?;
    let refused = refused.downcast::<Failure>()?;
    ensure!(refused.first().code() == "UNAVAILABLE", "{refused}");
    dead.start(None).await?;
    for id in lost {
        wait::until_true(format!("{id} in service again"), PATIENCE, async || {
            Ok(client.sh(id, "echo here").await? == "here")
        })
        .await?;
    }
    Ok(())
}
