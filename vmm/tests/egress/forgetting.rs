//! What the host remembers of guests that are gone: nothing, or those that come after them fill its one table.

use std::{fs, path::Path};

use wrenn_vmm::network::{EgressPolicy, SlotNumber};

use crate::{allocator, guest, world::WEB, zone::outside};

/// Connections in the host's table that began in a slot.
pub fn known(slot: SlotNumber) -> usize {
    let source = format!("src={} ", slot.namespace_address());
    let table = fs::read_to_string("/proc/net/nf_conntrack").unwrap();
    table.lines().filter(|line| line.contains(&source)).count()
}

fn is_there(slot: SlotNumber) -> bool {
    Path::new("/run/netns").join(slot.namespace()).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_forgets_a_guest_with_its_slot_and_when_the_slot_is_used_again() {
    // One of two slots is kept for the next guest, the other one removed.
    let slots = allocator("31168-31169", 1, &[]).await;
    let open = EgressPolicy::default();
    let (first, second) = (guest(&slots, &open).await, guest(&slots, &open).await);
    let (kept, removed) = (first.number, second.number);
    for guest in [&first, &second] {
        guest.assert_reaches(outside(10), WEB);
        assert_ne!(known(guest.number), 0);
    }

    slots.release(first.unplug()).await.unwrap();
    assert!(is_there(kept));
    assert_eq!(known(kept), 0);
    assert_ne!(known(removed), 0, "a neighbour's are not touched");

    slots.release(second.unplug()).await.unwrap();
    assert!(!is_there(removed));
    assert_eq!(known(removed), 0);
    slots.shutdown().await.unwrap();
}
