//! Network slots: one namespace, one link to the host and one TAP for each capsule, numbered.

mod address;
mod allocator;
mod claim;
mod conntrack;
mod egress;
mod learnt;
pub mod names;
mod namespace;
mod nfnetlink;
mod presence;
mod restriction;
mod rules;
mod tap;
mod watch;

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nftables::helper::NftablesError;

pub(crate) use self::{address::NOBODYS_UID, namespace::TAP};
pub use self::{
    address::{
        GUEST_ADDRESS, GUEST_MAC, InvalidRange, InvalidSlot, NAMESPACE_ADDRESS, SlotNumber, SlotRange,
    },
    allocator::{NetworkOptions, SlotAllocator},
    claim::SlotClaim,
    egress::{
        Destination, EgressPolicy, HostPattern, InvalidDestination, InvalidEgress, Ipv4Range,
        MAX_EGRESS_ENTRIES, NameVerdict,
    },
};
use self::{names::NameForwarder, namespace::Enter as _};
use crate::failure::{Failure, Failures, blocking};

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
    #[error(
        "the slots {taken} are another agent's on this host, so {slots} cannot be this one's: give each agent a range of its \
         own (WRENN_SLOTS)"
    )]
    ClaimedByAnother { slots: SlotRange, taken: SlotRange },
    #[error("removing network slots")]
    Teardown(#[from] Failures),
}

/// A network that is made and belongs to nobody else. Dropping it leaves it on the host.
#[derive(Debug)]
pub struct NetworkSlot {
    number: SlotNumber,
    namespace: Arc<OwnedFd>,
    /// There may be rules of an egress policy.
    restricted: bool,
    /// Answers the guest where its policy names hosts.
    names: Option<NameForwarder>,
}

impl NetworkSlot {
    pub fn number(&self) -> SlotNumber {
        self.number
    }

    /// Where the host reaches the guest.
    pub fn guest_address(&self) -> Ipv4Addr {
        self.number.guest_address()
    }

    /// Puts an egress policy in the place of the one there is. To be called before the guest runs, and again for a slot
    /// that was [claimed](SlotAllocator::claim): with the same policy, what the guest may reach stays the same
    /// throughout. Where the policy names hosts, the guest's questions for names are answered for as long as this slot
    /// is not dropped; these name servers are asked.
    ///
    /// After an error some of it may be in place; releasing the slot cleans it.
    pub async fn restrict(
        &mut self,
        policy: &EgressPolicy,
        name_servers: &[Ipv4Addr],
    ) -> Result<(), NetworkError> {
        self.silence().await;
        if policy.is_open() {
            return self.lift().await;
        }
        self.restricted = true;
        self.apply(restriction::policy_rules(policy, name_servers)).await?;
        if policy.names_hosts() {
            let names =
                NameForwarder::start(self.namespace.clone(), policy.clone(), name_servers.to_vec()).await?;
            self.names = Some(names);
        }
        Ok(())
    }

    async fn lift(&mut self) -> Result<(), NetworkError> {
        if self.restricted {
            self.apply(restriction::no_policy_rules()).await?;
            self.restricted = false;
        }
        Ok(())
    }

    async fn apply(&self, rules: rules::Rules) -> Result<(), NetworkError> {
        let (number, namespace) = (self.number, self.namespace.clone());
        blocking(move || {
            namespace.entered(|| {
                rules::apply(&rules).map_err(|source| NetworkError::Rules { slot: Some(number), source })
            })
        })
        .await
    }

    /// The guest's questions are not answered any more.
    async fn silence(&mut self) {
        if let Some(names) = self.names.take() {
            names.stop().await;
        }
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Opens the TAP for a VMM; fails as busy if another keeps it.
    pub(crate) async fn open_tap(&self) -> Result<OwnedFd, NetworkError> {
        let namespace = self.namespace.clone();
        blocking(move || namespace.entered(|| Ok(tap::open(namespace::TAP)?))).await
    }

    fn create(number: SlotNumber, name_servers: &[Ipv4Addr]) -> Result<Self, NetworkError> {
        let namespace = Arc::new(namespace::create(number, name_servers)?);
        Ok(Self { number, namespace, restricted: false, names: None })
    }

    fn open(number: SlotNumber, name_servers: &[Ipv4Addr]) -> Result<Self, NetworkError> {
        let namespace = Arc::new(namespace::open(number, name_servers)?);
        Ok(Self { number, namespace, restricted: true, names: None })
    }

    /// Makes it as new: no policy, nobody has its TAP any more, and no connection of an earlier guest is known, in the
    /// slot or on the host.
    async fn clean(&mut self) -> Result<(), NetworkError> {
        self.silence().await;
        self.lift().await?;
        let (number, namespace) = (self.number, self.namespace.clone());
        blocking(move || {
            namespace.entered(|| {
                drop(tap::open(namespace::TAP)?);
                Ok(conntrack::flush()?)
            })?;
            Ok(namespace::forget_connections(number)?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{SocketAddr, TcpStream},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::failure::Doing as _;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Tests of slots on the real host are in `tests/network.rs`; this one looks inside.
    #[tokio::test]
    async fn a_slot_is_clean_once_its_tap_is_free_and_forgets_connections() {
        assert!(nix::unistd::geteuid().is_root(), "network slots need root");
        let number = SlotNumber::try_from(31_199).unwrap();
        let mut slot = NetworkSlot::create(number, &[]).unwrap();
        let tap = slot.open_tap().await.unwrap();
        let busy = slot.open_tap().await.unwrap_err();
        assert!(
            matches!(&busy, NetworkError::Io(f) if f.source.raw_os_error() == Some(libc::EBUSY)),
            "{busy:?}"
        );
        assert!(slot.clean().await.is_err(), "somebody has the TAP");

        let guest = SocketAddr::from((slot.guest_address(), 9));
        let namespace = slot.namespace.clone();
        let known = || {
            namespace.entered(|| {
                let table = fs::read_to_string("/proc/thread-self/net/nf_conntrack");
                Ok(table.doing(|| "reading tracked connections")?.lines().count())
            })
        };
        // Nobody answers, but an attempt is remembered; on a link that has only just been made not the first one.
        let begun = Instant::now();
        loop {
            TcpStream::connect_timeout(&guest, Duration::from_millis(50)).unwrap_err();
            if known().unwrap() > 0 {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "no attempt is remembered");
        }
        drop(tap);
        slot.clean().await.unwrap();
        assert_eq!(known().unwrap(), 0);
        namespace::remove(number).unwrap();
    }
}
