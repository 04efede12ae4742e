//! How many connections there may be at once: each may be two open files, and none has said yet who it is.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bits of an IPv6 address that tell one network from another: a single machine has all addresses within one.
const NETWORK: u32 = 64;

/// The places there are, and who has them.
#[derive(Clone)]
pub(super) struct Capacity {
    free: Arc<Semaphore>,
    peers: Arc<Peers>,
}

struct Peers {
    /// 0: as many as there are places.
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

impl Peers {
    fn held(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capacity {
    /// `all`: connections at once; `per_peer`: those of one address, 0 for as many as there are.
    pub(super) fn new(all: usize, per_peer: usize) -> Self {
        let all = all.min(Semaphore::MAX_PERMITS);
        let peers = Peers { most: per_peer, held: Mutex::default() };
        Self { free: Arc::new(Semaphore::new(all)), peers: Arc::new(peers) }
    }

    /// Waits for a place. Who comes meanwhile waits in the kernel, which costs nobody anything.
    pub(super) async fn place(&self) -> Place {
        // Never closed, so this ends with a permit.
        let permit = self.free.clone().acquire_owned().await.ok();
        Place { _permit: permit, peers: self.peers.clone(), peer: None }
    }
}

/// A place for one connection, until it is dropped.
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    peers: Arc<Peers>,
    peer: Option<IpAddr>,
}

impl Place {
    /// The place as one of the peer's; none if it has as many as it may.
    pub(super) fn of(mut self, peer: IpAddr) -> Option<Self> {
        if self.peers.most == 0 {
            return Some(self);
        }
        let peer = network(peer);
        let mut held = self.peers.held();
        let count = held.entry(peer).or_default();
        if *count >= self.peers.most {
            return None;
        }
        *count += 1;
        drop(held);
        self.peer = Some(peer);
        Some(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(peer) = self.peer else { return };
        let mut held = self.peers.held();
        if let Some(count) = held.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                held.remove(&peer);
            }
        }
    }
}

/// Whom an address stands for.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> NETWORK << NETWORK).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_place_waits_for_one() {
        let capacity = Capacity::new(2, 0);
        let (one, _other) = (capacity.place().await, capacity.place().await);
        let mut next = Box::pin(capacity.place());
        assert!((&mut next).now_or_never().is_none());
        drop(one);
        next.await;
    }

    #[tokio::test]
    async fn a_peer_has_so_many_and_no_more() {
        let capacity = Capacity::new(100, 2);
        let take = async |peer: &str| capacity.place().await.of(peer.parse().expect("an address"));
        for [first, second, third, stranger] in [
            ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"],
            ["2001:db8::1", "2001:db8::2", "2001:db8::ffff", "2001:db8:0:1::1"],
        ] {
            let (first, second) = (take(first).await, take(second).await);
            assert!(first.is_some() && second.is_some());
            assert!(take(third).await.is_none(), "{third}");
            assert!(take(stranger).await.is_some(), "{stranger}");
            drop(first);
            assert!(take(third).await.is_some(), "{third}");
        }
        assert!(capacity.peers.held().is_empty(), "who is gone is forgotten");
        assert_eq!(capacity.free.available_permits(), 100);
    }
}
