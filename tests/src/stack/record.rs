//! The agent's record of a running capsule, as far as the baselines need it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub struct CapsuleRecord {
    /// As the metadata of every call into the guest carries it.
    pub token: String,
    machine: Machine,
}

#[derive(Debug, Deserialize)]
struct Machine {
    slot: u16,
    identity: Identity,
}

#[derive(Debug, Deserialize)]
struct Identity {
    tsc_khz: u64,
}

impl CapsuleRecord {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("the shape of {}", path.display()))
    }

    /// The rate of the host's time stamp counter as the agent measured it.
    pub fn tsc_khz(&self) -> u64 {
        self.machine.identity.tsc_khz
    }

    /// Where the host reaches the guest: 10.11.H.L for slot H·256+L.
    pub fn guest_address(&self) -> Ipv4Addr {
        let [high, low] = self.machine.slot.to_be_bytes();
        Ipv4Addr::new(10, 11, high, low)
    }
}
