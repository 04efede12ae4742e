//! Many capsules come and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
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
    let before = at_rest(stack).await?;
    stream::iter(0..CAPSULES)
        .map(|number| async move { one_life(stack).await.with_context(|| format!("capsule {number}")) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    is_as_before(stack, &before, "left by fifty capsules").await?;
    let running = client.capsules(json!({ "states": ["PENDING", "STARTING", "RUNNING", "PAUSED"] })).await?;
    ensure!(running.is_empty(), "{running:?}");
    Ok(())
}

pub async fn one_life(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.pause(&id).await?;
    client.destroy(&id).await?;
    Ok(())
}

/// Waits until the host is as it was at rest.
pub async fn is_as_before(stack: &Stack, before: &HostInventory, what: &str) -> Result<()> {
    wait::until_true("the host as it was", Duration::from_secs(30), async || {
        let now = HostInventory::take(stack.scope())?;
        comparable(before).difference(&comparable(&now)).into_result(what)?;
        for kind in POOLED {
            let (was, is) = (before.count(kind), now.count(kind));
            ensure!(was == is, "{was} times {kind} before, {is} now");
        }
        Ok(true)
    })
    .await
}

/// What every network slot has: the agent keeps some ready, under changing numbers.
pub const POOLED: [Kind; 3] = [Kind::Namespace, Kind::Link, Kind::Route];

/// Network slots that an agent keeps ready unless it is told otherwise.
const SPARE_SLOTS: usize = 2;

/// The inventory once nothing is under way: a VMM for each running capsule and each made ahead, none else, and the spare
/// slots made.
pub async fn at_rest(stack: &Stack) -> Result<HostInventory> {
    let running = stack.client().capsules(json!({ "states": ["RUNNING"] })).await?.len();
    wait::until("a host at rest", Duration::from_secs(60), async || {
        let vmms = stack.vmm_count();
        let wanted = running + stack.warm_pool();
        ensure!(vmms == wanted, "{vmms} VMMs for {running} running capsules");
        let now = HostInventory::take(stack.scope())?;
        let slots = now.count(Kind::Namespace);
        ensure!(slots == wanted + SPARE_SLOTS, "{slots} network slots for {running} running capsules");
        let links = now.count(Kind::Link);
        ensure!(links == slots, "{links} links for {slots} network slots: one is being made");
        Ok(Some(without_logs(now)))
    })
    .await
}

/// Without what an agent keeps ready, which is compared by its count, without what it shares with other agents of the
/// machine, which come and go meanwhile, and without files that are written all the time.
pub fn comparable(inventory: &HostInventory) -> HostInventory {
    let shared = without_logs(inventory.clone()).without(Kind::FirewallTable);
    POOLED.into_iter().fold(shared, HostInventory::without)
}

fn without_logs(inventory: HostInventory) -> HostInventory {
    inventory.without_items(Kind::File, |path| {
        path.starts_with("control/") || path.ends_with(".log") || path.contains("/logs/")
    })
}
