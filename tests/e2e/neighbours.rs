//! One capsule that takes all it can get does not stop the others.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::counter::Counter;
use wrenn_tests::graphql::{Client, Exec};
use wrenn_tests::outside::Outside;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The longest that anything of a neighbour's, or the beginning of a flood, may take beside floods.
const PATIENCE: Duration = Duration::from_secs(60);

/// Datagrams as fast as they go.
const PACKETS: &str = "use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => 'udp', PeerAddr => $ARGV[0], PeerPort => 9) \
     or die; my $d = 'x' x 1400; while (1) { $s->send($d); print STDERR '.' if ++$n % 1000 == 0 }";

/// The same 128 MiB, again and again.
const DISK: &str = "i=0; while :; do i=$(( (i + 8) % 128 )); \
    dd if=/dev/zero of=/root/flood bs=1M count=8 seek=$i conv=notrunc,fsync 2>/dev/null; echo . >&2; done";

const OUTPUT: &str = "while :; do head -c 1048576 /dev/zero; done";

pub async fn floods_stop_nobody_else(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let outside = Outside::start(stack.scope())?;
    let (loud, quiet) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let mut counter = Counter::start(client, &quiet).await?;
    let target = outside.addresses[0].to_string();
    let floods = [
        ("packets", Exec::argv(&loud, &["perl", "-e", PACKETS, &target])),
        ("disk", Exec::shell(&loud, DISK)),
    ];
    for (tag, flood) in floods {
        client.start(flood.with("tag", tag)).await?;
        wait::until_true(format!("a flood of {tag}"), PATIENCE, async || {
            progressed(client, &loud, tag).await
        })
        .await?;
        neighbour_goes_on(client, &quiet, &mut counter)
            .await
            .with_context(|| format!("beside a flood of {tag}"))?;
        still_running(client, &loud, tag).await?;
    }
    // Somebody reads it, so that it flows without end.
    let mut output = client.exec_stream(Exec::shell(&loud, OUTPUT).with("tag", "output")).await?;
    output.started().await?;
    let reading = async {
        while let Some(event) = output.next().await? {
            drop(event);
        }
        anyhow::bail!("the flood of output ended")
    };
    tokio::select! {
        ended = reading => return ended,
        gone_on = neighbour_goes_on(client, &quiet, &mut counter) => gone_on.context("beside three floods")?,
    }
    for tag in ["packets", "disk", "output"] {
        still_running(client, &loud, tag).await?;
    }
    // The loud one obeys, too.
    client.destroy(&loud).await?;
    client.destroy(&quiet).await?;
    Ok(())
}

/// All that a neighbour may want: programs, its own work, a pause, and new capsules beside it.
async fn neighbour_goes_on(client: &Client, id: &str, counter: &mut Counter) -> Result<()> {
    for _ in 0..5 {
        ensure!(in_time(client.sh(id, "echo here")).await? == "here");
    }
    in_time(counter.goes_on(client, id)).await?;
    in_time(client.pause(id)).await?;
    in_time(client.resume(id)).await?;
    in_time(counter.goes_on(client, id)).await?;
    let fresh = in_time(client.create(json!({}))).await?.id;
    ensure!(in_time(client.sh(&fresh, "echo here")).await? == "here");
    in_time(client.destroy(&fresh)).await.map(drop)
}

async fn in_time<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, step).await.with_context(|| format!("not within {PATIENCE:?}"))?
}

/// Each flood says on its standard error now and then that it flows.
async fn progressed(client: &Client, id: &str, tag: &str) -> Result<bool> {
    let mut stream = client.process_output(id, tag, None).await?;
    stream.started().await?;
    Ok(stream.next_within(PATIENCE).await?.is_some())
}

async fn still_running(client: &Client, id: &str, tag: &str) -> Result<()> {
    let processes: Vec<Value> = client.processes(id).await?;
    let flood = processes.iter().find(|process| process["tag"] == tag).context("the flood is not listed")?;
    ensure!(flood["running"] == true, "the flood ended by itself: {flood}");
    Ok(())
}
