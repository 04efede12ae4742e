//! Keystrokes: from the client through control plane and agent to a terminal and back, alone and beside a flood on the
//! same socket.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use wrenn_tests::guest::Guest;
use wrenn_tests::stack::Stack;
use wrenn_tests::stats::percentile;

use crate::table::{Promise, Row};
use crate::terminal::{MIRROR, READY, Terminal};

/// Keystrokes of each round: a 99th percentile wants a hundred.
pub const KEYSTROKES: usize = 100;

/// The control plane's period, unless it is told another.
const PING_EVERY: Duration = Duration::from_secs(15);
/// What a flood may hold up a ping or a pong by, in milliseconds.
const LATE_MS: f64 = 100.0;

/// The 99th percentile of a round.
pub fn p99(samples: &mut [Duration]) -> Result<Duration> {
    samples.sort_unstable();
    let seconds: Vec<f64> = samples.iter().map(Duration::as_secs_f64).collect();
    percentile(&seconds, 99.0).map(Duration::from_secs_f64).context("no samples")
}

pub async fn measure(stack: &Stack, samples: usize) -> Result<Vec<Row>> {
    let mut echo = Row::new("echo of a keystroke", "envd called directly", Promise::Plus(2.0));
    let mut tail =
        Row::new("p99 of that echo beside a flood on its socket", "without the flood", Promise::Times(2.0));
    let mut pong =
        Row::new("p99 of a pong beside a flood on its socket", "without the flood", Promise::Plus(LATE_MS));
    let mut pings = Row::new(
        "longest time between the server's pings beside a flood on their socket",
        "–",
        Promise::Within(PING_EVERY.as_secs_f64() * 1000.0 + LATE_MS),
    );
    let client = stack.client();
    let (id, loud) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let mut guest = Guest::connect(&stack.host_of(&id)?.record_path(&id)).await?;
    let mut direct = guest.open_pty(MIRROR).await?;
    direct.read(READY).await?;
    for round in 0..samples {
        eprint!("\rround {} of {samples}", round + 1);
        let mut terminal = Terminal::open(stack, &id).await?;
        let tag = format!("flood-{round}");
        for flooded in [false, true] {
            if flooded {
                terminal.flood(&loud, &tag).await?;
            }
            let (mut echoes, mut pongs) = (Vec::new(), Vec::new());
            for _ in 0..KEYSTROKES {
                if !flooded {
                    let begun = Instant::now();
                    direct.echo(b"x").await?;
                    echo.baseline.push(begun.elapsed());
                }
                echoes.push(terminal.echo(b"x").await?);
                pongs.push(terminal.ping().await?);
            }
            if !flooded {
                echoes.iter().for_each(|took| echo.wrenn.push(*took));
            }
            let of =
                |row: &mut Row, took| if flooded { row.wrenn.push(took) } else { row.baseline.push(took) };
            of(&mut tail, p99(&mut echoes)?);
            of(&mut pong, p99(&mut pongs)?);
        }
        if round + 1 == samples {
            pings.wrenn.push(terminal.longest_without_ping(2 * PING_EVERY + PING_EVERY / 10).await?);
        }
        client.signal(&loud, &tag, "SIGKILL").await?;
    }
    eprintln!();
    client.destroy(&id).await?;
    client.destroy(&loud).await?;
    Ok(vec![echo, tail, pong, pings])
}
