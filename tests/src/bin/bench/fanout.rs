//! One change, many who watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use wrenn_tests::graphql::{Frame, Socket};
use wrenn_tests::procfs;
use wrenn_tests::stack::Stack;

use crate::table::{Promise, Row};

const SOCKETS: u64 = 200;
const SUBSCRIPTIONS: u64 = 1000;

/// Changes before memory is first looked at: buffers fill at first.
const SETTLED: u64 = 20;

/// Longer than any change may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

const WATCH: &str = "subscription($id: ID!) { capsule(id: $id) { timeoutSec } }";

/// What has arrived, at all subscriptions together.
#[derive(Default)]
struct Arrived {
    events: AtomicU64,
    changed: Notify,
}

impl Arrived {
    async fn wait_for(&self, events: u64) -> Result<()> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if self.events.load(Ordering::SeqCst) >= events {
                    return;
                }
                changed.await;
            }
        };
        let arrived = || self.events.load(Ordering::SeqCst);
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .with_context(|| format!("{} of {events} events have come", arrived()))
    }
}

/// Reads a socket with its share of the subscriptions for as long as it is let.
async fn watch(mut socket: Socket, id: String, arrived: Arc<Arrived>) -> Result<()> {
    for number in 0..SUBSCRIPTIONS / SOCKETS {
        socket.start(&number.to_string(), WATCH, json!({ "id": id })).await?;
    }
    loop {
        match socket.next().await? {
            Frame::Next { .. } => {
                let events = arrived.events.fetch_add(1, Ordering::SeqCst) + 1;
                if events.is_multiple_of(SUBSCRIPTIONS) {
                    arrived.changed.notify_waiters();
                }
            }
            other => bail!("{other:?} where a capsule is watched"),
        }
    }
}

/// `changes` are those over which memory is to stay as it is.
pub async fn measure(stack: &Stack, samples: usize, changes: u64) -> Result<Vec<Row>> {
    ensure!(changes >= SETTLED, "at least {SETTLED} changes are wanted");
    let mut reach =
        Row::new("a change reaches 1,000 subscriptions on 200 sockets", "–", Promise::Within(200.0));
    let mut memory = Row::of_sizes(
        "memory of `wrenn-api` after the changes to them",
        "after the first 20 changes",
        Promise::Times(1.1),
    );
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let arrived = Arc::<Arrived>::default();
    let mut watching = JoinSet::new();
    for _ in 0..SOCKETS {
        watching.spawn(watch(Socket::connect(client).await?, id.clone(), arrived.clone()));
    }
    arrived.wait_for(SUBSCRIPTIONS).await?;
    for change in 1..=changes {
        let begun = Instant::now();
        // Every one is another value, so each is a change.
        client.set_timeout(&id, 100_000 + i64::try_from(change)?).await?;
        arrived.wait_for(SUBSCRIPTIONS * (change + 1)).await?;
        if change <= samples as u64 {
            reach.wrenn.push(begun.elapsed());
        }
        if change == SETTLED {
            memory.baseline.push_bytes(resident(stack)?);
        }
        if let Some(Err(error)) | Some(Ok(Err(error))) =
            watching.try_join_next().map(|it| it.map_err(anyhow::Error::from))
        {
            return Err(error);
        }
    }
    memory.wrenn.push_bytes(resident(stack)?);
    watching.shutdown().await;
    client.destroy(&id).await?;
    Ok(vec![reach, memory])
}

/// Bytes of memory that the control plane has.
fn resident(stack: &Stack) -> Result<u64> {
    Ok(procfs::resident_kib(stack.api_pid()?).context("memory of the api")? * 1024)
}
