//! Network slots: one namespace, one link to the host and one TAP for each capsule, numbered.

mod address;
mod allocator;
mod conntrack;
mod namespace;
mod rules;
mod tap;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nftables::helper::NftablesError;

use self::namespace::Enter as _;
pub use self::{
    address::{
        GUEST_ADDRESS, GUEST_MAC, InvalidRange, InvalidSlot, NAMESPACE_ADDRESS, SlotNumber, SlotRange,
    },
    allocator::{NetworkOptions, SlotAllocator, remove_host_rules},
};
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{SocketAddr, TcpStream},
        time::Duration,
    };

    use super::*;
    use crate::failure::Doing as _;

    /// Tests of slots on the real host are in `tests/network.rs`; this one looks inside.
    #[test]
    fn a_slot_is_clean_once_its_tap_is_free_and_forgets_connections() {
        assert!(nix::unistd::geteuid().is_root(), "network slots need root");
        let number = SlotNumber::try_from(31_199).unwrap();
        let slot = NetworkSlot::create(number).unwrap();
        let tap = slot.open_tap().unwrap();
        let busy = slot.open_tap().unwrap_err();
        assert!(
            matches!(&busy, NetworkError::Io(f) if f.source.raw_os_error() == Some(libc::EBUSY)),
            "{busy:?}"
        );
        assert!(slot.clean().is_err(), "somebody has the TAP");

        // Nobody answers, but the attempt is remembered.
        let guest = SocketAddr::from((slot.guest_address(), 9));
        TcpStream::connect_timeout(&guest, Duration::from_millis(50)).unwrap_err();
        let known = || {
            slot.namespace.entered(|| {
                let table = fs::read_to_string("/proc/thread-self/net/nf_conntrack");
                Ok(table.doing(|| "reading tracked connections")?.lines().count())
            })
        };
        assert_ne!(known().unwrap(), 0);
        drop(tap);
        slot.clean().unwrap();
        assert_eq!(known().unwrap(), 0);
        namespace::remove(number).unwrap();
    }
}
