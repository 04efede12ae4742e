//! The load of a capsule, as its host sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::graphql::{Client, Exec, Failure};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// Points are taken twice a second.
const SOON: Duration = Duration::from_secs(30);

/// The longest that a load may take to show.
const SHOWN: Duration = Duration::from_secs(120);

const MIB: u64 = 1024 * 1024;

const POINT: &str = "at cpuPercent memoryBytes diskBytes";

/// One point.
#[derive(Debug)]
struct Load {
    at: String,
    cpu_percent: f64,
    memory_bytes: u64,
    disk_bytes: u64,
}

pub async fn load_shows(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let idle = wait::until("some points", SOON, async || {
        let points = points(client, &id, "M5").await?;
        Ok((points.len() >= 3).then_some(points))
    })
    .await?;
    ensure!(idle.is_sorted_by(|one, next| one.at < next.at), "not in the order of time: {idle:?}");
    ensure!(idle.iter().all(|point| point.memory_bytes > 8 * MIB), "no VMM is as small as that: {idle:?}");
    let before = idle.last().context("a point")?.disk_bytes;

    let query = format!("subscription($id: ID!) {{ capsuleMetrics(id: $id, range: M5) {{ {POINT} }} }}");
    let mut live = client.subscribe(&query, json!({ "id": id })).await?;
    client.start(Exec::shell(&id, "while :; do :; done").with("tag", "busy")).await?;
    client.sh(&id, "head -c 67108864 /dev/urandom > /root/large; sync").await?;
    let (mut busy, mut written) = (false, false);
    let begun = Instant::now();
    while !(busy && written) {
        ensure!(begun.elapsed() < SHOWN, "busy: {busy}, written: {written} after {SHOWN:?}");
        let event = live.next_within(SOON).await?.context("the points ended")?;
        let point = load(&event["capsuleMetrics"])?;
        // A loop takes all of its one CPU, but the machine may have others to serve.
        busy |= point.cpu_percent > 20.0;
        written |= point.disk_bytes >= before + 48 * MIB;
    }
    drop(live);
    client.signal(&id, "busy", "SIGKILL").await?;
    for range in ["M5", "M10", "H1", "H2", "H6", "H12", "H24"] {
        points(client, &id, range).await.with_context(|| range.to_owned())?;
    }
    client.pause(&id).await?;
    let kept = points(client, &id, "M5").await.context("of a paused capsule")?;
    ensure!(!kept.is_empty(), "a pause loses what was measured before");
    client.destroy(&id).await?;
    let gone = points(client, &id, "M5").await.err().context("points of a destroyed capsule")?;
    ensure!(
        ["NOT_FOUND", "FAILED_PRECONDITION"].contains(&Failure::code_of(&gone).unwrap_or("")),
        "{gone:#}"
    );
    Ok(())
}

async fn points(client: &Client, id: &str, range: &str) -> Result<Vec<Load>> {
    let query = format!(
        "query($id: ID!, $range: MetricsRange!) {{ capsule(id: $id) {{ metrics(range: $range) {{ {POINT} }} }} }}"
    );
    let found: Value = client.get("capsule", &query, json!({ "id": id, "range": range })).await?;
    found["metrics"].as_array().context("metrics")?.iter().map(load).collect()
}

fn load(point: &Value) -> Result<Load> {
    let bytes = |field: &str| point[field].as_str().with_context(|| format!("{field} of {point}"));
    Ok(Load {
        at: point["at"].as_str().context("at")?.to_owned(),
        cpu_percent: point["cpuPercent"].as_f64().context("cpuPercent")?,
        memory_bytes: bytes("memoryBytes")?.parse()?,
        disk_bytes: bytes("diskBytes")?.parse()?,
    })
}
