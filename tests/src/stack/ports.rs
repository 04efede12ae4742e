//! Ports of the loopback for the daemons of a stack.
//!
//! They lie below the range that the kernel gives to outgoing connections (32768-60999 unless configured): one of
//! those would sooner or later hold a port that a daemon is to be started on again.

use std::net::TcpListener;

use anyhow::{Context, Result};

use super::slots;

/// Where the stacks' ports begin. The last block of network slots ends below 17000.
const FIRST: u16 = 12_000;

/// Ports of each block of network slots, which no other stack on the machine has.
const PER_BLOCK: u16 = 8;

/// The free ports that belong to a stack's network slots.
pub struct Ports(Vec<u16>);

impl Ports {
    pub fn of_slots(first_slot: u16) -> Self {
        let first = FIRST + slots::block_number(first_slot) * PER_BLOCK;
        Self((first..first + PER_BLOCK).rev().collect())
    }

    /// The next one that nobody listens on.
    pub fn take(&mut self) -> Result<u16> {
        loop {
            let port = self.0.pop().context("every port of this stack is taken by somebody else")?;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_only_if_it_is_free() {
        let mut ports = Ports::of_slots(32_740);
        let first = ports.take().expect("a port");
        let taken = TcpListener::bind(("127.0.0.1", first + 1)).expect("free until now");
        assert_eq!(ports.take().expect("a port"), first + 2);
        drop(taken);
        assert!(first < 32_768);
    }
}
