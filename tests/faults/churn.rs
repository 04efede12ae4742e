//! Many capsules come and go.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use wrenn_tests::inventory::{HostInventory, Kind};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

const CAPSULES: usize = 50;
const AT_ONCE: usize = 4;

pub async fn fifty_capsules_leave_nothing(stack: &Stack) -> Result<()> {
    let client = stack.client();
    // The first one makes what stays: the golden snapshot, the slots kept ready.
    one_life(stack).await?;
    let before = pool_filled(stack).await?;
    stream::iter(0..CAPSULES)
        .map(|number| async move { one_life(stack).await.with_context(|| format!("capsule {number}")) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    wait::until_true("the host as it was", Duration::from_secs(30), async || {
        let now = HostInventory::take(stack.scope())?;
        comparable(&before).difference(&comparable(&now)).into_result("left by fifty capsules")?;
        Ok(before.count(Kind::Namespace) == now.count(Kind::Namespace))
    })
    .await?;
    let running = client.capsules(json!({ "states": ["PENDING", "STARTING", "RUNNING", "PAUSED"] })).await?;
    anyhow::ensure!(running.is_empty(), "{running:?}");
    Ok(())
}

async fn one_life(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.pause(&id).await?;
    client.destroy(&id).await?;
    Ok(())
}

/// The inventory once it has stopped changing.
async fn pool_filled(stack: &Stack) -> Result<HostInventory> {
    let mut last = HostInventory::take(stack.scope())?;
    wait::until("a host at rest", Duration::from_secs(30), async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = HostInventory::take(stack.scope())?;
        let at_rest = comparable(&now) == comparable(&last);
        last = now;
        Ok(at_rest.then(|| last.clone()))
    })
    .await
}

/// Without what an agent keeps ready under changing numbers (network slots), which is compared by its count, and
/// without the database's and the logs' own files.
pub fn comparable(inventory: &HostInventory) -> HostInventory {
    inventory
        .clone()
        .without(Kind::Namespace)
        .without(Kind::Link)
        .without(Kind::Route)
        .without(Kind::FirewallRule)
        .without_items(Kind::File, |path| {
            path.starts_with("control/") || path.ends_with(".log") || path.contains("/logs/")
        })
}
