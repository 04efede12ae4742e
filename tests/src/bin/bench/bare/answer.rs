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

/// A new attempt is begun this often: one that was begun while the guest stood still may wait a second for its
/// second packet.
const INTERVAL: Duration = Duration::from_millis(2);

/// When the guest was there, counted from the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// Its kernel had accepted a connection.
    pub connected: Duration,
    /// Its process had said something.
    pub answered: Duration,
}

/// To be called on a thread that is in the guest's namespace.
pub fn wait(begun: Instant, patience: Duration) -> Result<Answered> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut attempts = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(INTERVAL);
        while begun.elapsed() < patience {
            tokio::select! {
                _ = ticks.tick() => attempts.push(attempt(begun)),
                Some(outcome) = attempts.next(), if !attempts.is_empty() => {
                    if let Ok(answered) = outcome {
                        return Ok(answered);
                    }
                }
            }
        }
        bail!("no answer from a bare machine within {patience:?}")
    })
}

async fn attempt(begun: Instant) -> Result<Answered> {
    let mut stream = TcpStream::connect((GUEST, PORT)).await.context("connecting")?;
    let connected = begun.elapsed();
    stream.read_u8().await.context("reading")?;
    Ok(Answered { connected, answered: begun.elapsed() })
}
