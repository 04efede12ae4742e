//! A restore goes wrong within the guest.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::inventory::HostInventory;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

use super::api::settled;
use super::churn::{POOLED, at_rest, comparable};

const PATIENCE: Duration = Duration::from_secs(60);

/// Two copies that gave the same random numbers would be worse than none.
pub async fn without_fresh_random_numbers_are_not_served(stack: &Stack) -> Result<()> {
    let client = stack.client();
    stack.host().order("")?;
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/in-memory").await?;
    client.pause(&id).await?;
    let before = at_rest(stack).await?;

    stack.host().order("handover.reseeded=error")?;
    let passed = || stack.host().passed("handover.reseeded");
    client.create(json!({})).await.err().context("created without fresh random numbers")?;
    let creates = passed()?;
    client.resume(&id).await.err().context("resumed without fresh random numbers")?;
    ensure!(creates > 0 && passed()? > creates, "something else failed");
    stack.host().order("")?;
    settled(stack).await?;
    wait::until_true("the host as it was", PATIENCE, async || {
        let now = HostInventory::take(stack.scope())?;
        comparable(&before).difference(&comparable(&now)).into_result("left by restores that failed")?;
        for kind in POOLED {
            let (was, is) = (before.count(kind), now.count(kind));
            ensure!(was == is, "{was} times {kind} before, {is} now");
        }
        Ok(true)
    })
    .await?;

    let capsule = client.capsule(&id).await?.context("the capsule")?;
    ensure!(capsule.state == "PAUSED", "{capsule:?}");
    client.resume(&id).await?;
    ensure!(client.sh(&id, "cat /run/in-memory").await? == "kept");
    Ok(())
}
