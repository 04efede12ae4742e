//! Network slots: one namespace, one link to the host and one TAP for each capsule, numbered.

mod address;
mod allocator;
mod conntrack;
mod namespace;
mod rules;
mod tap;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nftables::helper::NftablesError;

pub use self::{
    address::{
        GUEST_ADDRESS, GUEST_MAC, InvalidRange, InvalidSlot, NAMESPACE_ADDRESS, SlotNumber, SlotRange,
    },
    allocator::{NetworkOptions, SlotAllocator, remove_host_rules},
};
use self::namespace::Enter as _;
use crate::failure::{Failure, Failures};

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Io(#[from] Failure),
    #[error("slot {slot}: {what}")]
    Netlink {
        slot: SlotNumber,
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("setting packet filter rules{}", slot.map(|slot| format!(" of slot {slot}")).unwrap_or_default())]
    Rules {
        slot: Option<SlotNumber>,
        #[source]
        source: NftablesError,
    },
    #[error("all {0} network slots of this host are taken")]
    Exhausted(usize),
    #[error("slot {0} is not among those that were claimed")]
    NotClaimed(SlotNumber),
    #[error("removing network slots")]
    Teardown(#[from] Failures),
}

/// A network that is made and belongs to nobody else. Dropping it leaves it on the host.
#[derive(Debug)]
pub struct NetworkSlot {
    number: SlotNumber,
    namespace: OwnedFd,
}

impl NetworkSlot {
    pub fn number(&self) -> SlotNumber {
        self.number
    }

    /// Where the host reaches the guest.
    pub fn guest_address(&self) -> std::net::Ipv4Addr {
        self.number.guest_address()
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Opens the TAP for a VMM; fails as busy if another has it.
    pub(crate) fn open_tap(&self) -> Result<OwnedFd, NetworkError> {
        self.namespace.entered(|| Ok(tap::open(namespace::TAP)?))
    }

    fn create(number: SlotNumber) -> Result<Self, NetworkError> {
        Ok(Self { number, namespace: namespace::create(number)? })
    }

    fn open(number: SlotNumber) -> Result<Self, NetworkError> {
        Ok(Self { number, namespace: namespace::open(number)? })
    }

    /// Makes it as new: nobody has its TAP any more and no connection of an earlier guest is known.
    fn clean(&self) -> Result<(), NetworkError> {
        self.namespace.entered(|| {
            drop(tap::open(namespace::TAP)?);
            Ok(conntrack::flush()?)
        })
    }
}
