//! Free ports of the loopback.

use std::net::TcpListener;

use anyhow::{Context, Result};

/// A port that nobody listens on at this moment. The kernel hands out ephemeral ports in an order of its
/// own, so that two callers are most unlikely to be given the same one before they have bound it.
pub fn free() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
