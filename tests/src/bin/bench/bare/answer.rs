//! Waiting for the first word of a guest.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::network::GUEST;

/// Where the answerer listens.
const PORT: u16 = 7;

/// How a guest is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A new attempt is begun this often: one that was begun before there was a machine is lost, and would be
    /// repeated only after a second. Each of them is work for the guest, too.
    pub interval: Duration,
    pub deadline: Duration,
}

/// When the guest was there, counted from the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// Its kernel had accepted a connection.
    pub connected: Duration,
    /// Its process had said something.
    pub answered: Duration,
}

/// To be called on a thread that is in the guest's namespace. When it returns, the guest has nothing left to do: the
/// attempts that were too early have been dealt with.
pub fn wait(begun: Instant, patience: Patience) -> Result<Answered> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let answered = first_of_many(begun, patience).await?;
        // Connections are answered in the order they came in: the last one of all was this.
        first_of_many(Instant::now(), patience).await.context("asking once more")?;
        Ok(answered)
    })
}

async fn first_of_many(begun: Instant, patience: Patience) -> Result<Answered> {
    let mut attempts = FuturesUnordered::new();
    let mut ticks = tokio::time::interval(patience.interval);
    while begun.elapsed() < patience.deadline {
        tokio::select! {
            _ = ticks.tick() => attempts.push(attempt(begun)),
            Some(outcome) = attempts.next(), if !attempts.is_empty() => {
                if let Ok(answered) = outcome {
                    return Ok(answered);
                }
            }
        }
    }
    bail!("no answer from a bare machine within {:?}", patience.deadline)
}

async fn attempt(begun: Instant) -> Result<Answered> {
    let mut stream = TcpStream::connect((GUEST, PORT)).await.context("connecting")?;
    let connected = begun.elapsed();
    stream.read_u8().await.context("reading")?;
    Ok(Answered { connected, answered: begun.elapsed() })
}
