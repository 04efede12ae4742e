//! One change, many who watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use wrenn_tests::graphql::{Frame, Socket};
use wrenn_tests::procfs;
use wrenn_tests::stack::Stack;

use crate::table::{Promise, Row};

const SOCKETS: u64 = 200;
const SUBSCRIPTIONS: u64 = 1000;

/// Changes over which memory is to stay as it is, and those of a quick run.
const CHANGES: u64 = 10_000;
const QUICK_CHANGES: u64 = 50;
/// Changes before memory is first looked at: buffers fill at first. Until then each is waited for; later ones are made
/// as fast as they are answered, and whoever watches may be told of several at once.
const SETTLED: u64 = 20;

/// Longer than any change may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

const WATCH: &str = "subscription($id: ID!) { capsule(id: $id) { timeoutSec } }";

/// What has arrived, at all subscriptions together.
#[derive(Default)]
struct Arrived {
    events: AtomicU64,
    /// Subscriptions that have seen the last value of all.
    complete: AtomicU64,
    changed: Notify,
}

impl Arrived {
    async fn wait_for(&self, counter: &AtomicU64, events: u64) -> Result<()> {
        let arrived = || counter.load(Ordering::SeqCst);
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if arrived() >= events {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .with_context(|| format!("{} of {events} events have come", arrived()))
    }

    fn note(&self, counter: &AtomicU64) {
        let events = counter.fetch_add(1, Ordering::SeqCst) + 1;
        if events.is_multiple_of(SUBSCRIPTIONS) {
            self.changed.notify_waiters();
        }
    }
}

/// Reads a socket with its share of the subscriptions for as long as it is let.
async fn watch(mut socket: Socket, id: String, last: i64, arrived: Arc<Arrived>) -> Result<()> {
    for number in 0..SUBSCRIPTIONS / SOCKETS {
        socket.start(&number.to_string(), WATCH, json!({ "id": id })).await?;
    }
    loop {
        match socket.next().await? {
            Frame::Next { data, .. } => {
                arrived.note(&arrived.events);
                if data["capsule"]["timeoutSec"] == last {
                    arrived.note(&arrived.complete);
                }
            }
            other => bail!("{other:?} where a capsule is watched"),
        }
    }
}

pub async fn measure(stack: &Stack, samples: usize, quick: bool) -> Result<Vec<Row>> {
    let mut reach =
        Row::new("a change reaches 1,000 subscriptions on 200 sockets", "–", Promise::Within(200.0));
    let mut memory = Row::of_sizes(
        "memory of `wrenn-api` after 10,000 changes to them (quick: 50)",
        "after the first 20 changes",
        Promise::Times(1.1),
    );
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let changes = if quick { QUICK_CHANGES } else { CHANGES };
    // Every one is another value, so each is a change.
    let value = |change: u64| i64::try_from(100_000 + change);
    let last = value(changes)?;
    let arrived = Arc::<Arrived>::default();
    let mut watching = JoinSet::new();
    for _ in 0..SOCKETS {
        watching.spawn(watch(Socket::connect(client).await?, id.clone(), last, arrived.clone()));
    }
    arrived.wait_for(&arrived.events, SUBSCRIPTIONS).await?;
    for change in 1..=changes {
        let begun = Instant::now();
        client.set_timeout(&id, value(change)?).await?;
        if change <= SETTLED {
            arrived.wait_for(&arrived.events, SUBSCRIPTIONS * (change + 1)).await?;
        }
        if change <= SETTLED.min(samples as u64) {
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
    arrived.wait_for(&arrived.complete, SUBSCRIPTIONS).await?;
    memory.wrenn.push_bytes(resident(stack)?);
    watching.shutdown().await;
    client.destroy(&id).await?;
    Ok(vec![reach, memory])
}

/// Bytes of memory that the control plane has.
fn resident(stack: &Stack) -> Result<u64> {
    Ok(procfs::resident_kib(stack.api_pid()?).context("memory of the api")? * 1024)
}
