//! Egress policies as guests meet them: real slots, something that behaves as a guest at the end of each TAP, and an
//! outside with services and a name server. Needs root, nft and ip; uses slots 31160 to 31192.

mod earlier;
mod flood;
mod forgetting;
mod leaving;
mod names;
mod ranges;
mod restart;
mod world;
mod zone;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use wrenn_vmm::network::{EgressPolicy, NetworkOptions, SlotAllocator, SlotNumber};

use crate::world::{Guest, NAME_SERVER, Outside};

const PATIENCE: Duration = Duration::from_secs(20);

async fn allocator(slots: &str, pool: usize, claimed: &[SlotNumber]) -> SlotAllocator {
    Outside::get();
    let options = NetworkOptions { slots: slots.parse().unwrap(), pool, name_servers: vec![NAME_SERVER] };
    SlotAllocator::start(options, &claimed.iter().copied().collect::<BTreeSet<_>>()).await.unwrap()
}

fn policy(deny_all: bool, allow: &[&str], deny: &[&str]) -> EgressPolicy {
    EgressPolicy::new(deny_all, allow, deny).unwrap()
}

/// A guest under a policy.
async fn guest(slots: &SlotAllocator, policy: &EgressPolicy) -> Guest {
    let mut slot = slots.acquire().await.unwrap();
    slot.restrict(policy, &[NAME_SERVER]).await.unwrap();
    Guest::plug_in(slot)
}

async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Ends guests and what they were in.
async fn end(slots: SlotAllocator, guests: impl IntoIterator<Item = Guest>) {
    for guest in guests {
        slots.release(guest.unplug()).await.unwrap();
    }
    slots.shutdown().await.unwrap();
}
