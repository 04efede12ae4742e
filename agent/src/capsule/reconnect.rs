//! A machine that goes on, and its guest that is to be heard of again: after a pause that failed, and under another agent.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::Instant;
use wrenn_vmm::disk::AttachedDisk;
use wrenn_vmm::driver::Machine;
use wrenn_vmm::network::NetworkSlot;
use wrenn_vmm::paths::CapsulePaths;

use super::error::CapsuleError;
use super::handover::Handover;
use super::life::{Life, RunningHandle};
use super::parts::{Parts, RunningCapsule};
use crate::guest::Guest;
use crate::token::Token;

/// How many times the grace a guest may be silent under a new agent before its machine is ended. A guest that has much to
/// do on a host that has much to do is slow, and may be in the midst of somebody's work.
const SILENCE: u32 = 60;
/// Between attempts at a guest that answers, but not as it should.
const RETRY: Duration = Duration::from_secs(1);

/// Lets the vCPUs go on, and makes the guest one that may be served. Its clock stood still with its vCPUs, however long
/// that was, so it is told the time again, and all else that it is told after a restore.
pub async fn reconnect(
    handover: &Handover<'_>,
    machine: &mut dyn Machine,
    address: Ipv4Addr,
) -> Result<Guest, CapsuleError> {
    // Those that run do not mind.
    resume(machine).await?;
    let grace = handover.engine.grace;
    let answered = answer(address, handover.token, grace);
    tokio::pin!(answered);
    let guest = loop {
        tokio::select! {
            guest = &mut answered => break guest?,
            _stood = machine.outlast_stall() => {}
        }
    };
    // It is told the time in any case: that it stood still until now must not be made good for once more.
    resume(machine).await?;
    handover.run(guest, machine, Instant::now() + grace).await
}

async fn resume(machine: &mut dyn Machine) -> Result<(), CapsuleError> {
    machine.resume_vcpus().await.map_err(CapsuleError::step("letting the vCPUs go on"))
}

async fn answer(address: Ipv4Addr, token: &Token, grace: Duration) -> Result<Guest, CapsuleError> {
    let guest = Guest::connect(address, Some(token), Instant::now() + grace)
        .await
        .map_err(CapsuleError::guest("reaching the guest"))?;
    // A guest that is silent does what it was told once it can, and would set its clock to a time long gone.
    guest.health(grace).await.map_err(CapsuleError::guest("asking the guest's health"))?;
    Ok(guest)
}

/// A capsule that runs on under this agent, and whose guest has not answered it yet.
pub struct UnheardCapsule {
    pub machine: Box<dyn Machine>,
    slot: NetworkSlot,
    disk: AttachedDisk,
    home: CapsulePaths,
    /// It may be silent until then.
    until: Instant,
}

impl UnheardCapsule {
    /// Its silence begins now.
    pub fn new(
        machine: Box<dyn Machine>,
        slot: NetworkSlot,
        disk: AttachedDisk,
        home: CapsulePaths,
        grace: Duration,
    ) -> Self {
        Self { machine, slot, disk, home, until: Instant::now() + grace * SILENCE }
    }

    /// Tries once, for as long as the grace.
    pub async fn ask(&mut self, handover: &Handover<'_>) -> Result<Guest, CapsuleError> {
        let address = self.slot.guest_address();
        reconnect(handover, self.machine.as_mut(), address).await
    }

    /// Tries for as long as the guest may be silent, or cannot but be.
    pub async fn wait(&mut self, handover: &Handover<'_>) -> Result<Guest, CapsuleError> {
        loop {
            match self.ask(handover).await {
                Err(_) if Instant::now() < self.until || self.machine.is_stalled() => {
                    tokio::time::sleep(RETRY).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Its guest has answered.
    pub fn served(self, guest: Guest) -> RunningCapsule {
        let Self { machine, slot, disk, home, until: _ } = self;
        let handle = RunningHandle { guest, life: Life::default(), vmm: machine.process().clone() };
        RunningCapsule { machine, slot, disk, home, handle }
    }

    pub fn into_parts(self) -> Parts {
        Parts { slot: Some(self.slot), disk: Some(self.disk), machine: Some(self.machine) }
    }
}
