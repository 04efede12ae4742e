//! Who takes the host's rules away. Under test in a network and mounts of its own, as on a machine without anything else.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    thread,
};

use nftables::{helper::get_current_ruleset, schema::NfObject};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use wrenn_vmm::network::{NetworkOptions, SlotAllocator};

/// Runs something on a machine with nothing on it.
fn on_a_bare_machine(work: impl AsyncFnOnce() + Send) {
    assert!(nix::unistd::geteuid().is_root(), "namespaces need root");
    let bare = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
        // Its threads are on the same machine as the one that makes them.
        tokio::runtime::Runtime::new().unwrap().block_on(work());
    };
    thread::scope(|scope| scope.spawn(bare).join().unwrap());
}

async fn allocator(slots: &str) -> SlotAllocator {
    let options = NetworkOptions { slots: slots.parse().unwrap(), pool: 0, name_servers: Vec::new() };
    SlotAllocator::start(options, &BTreeSet::new()).await.unwrap()
}

fn has_rules() -> bool {
    get_current_ruleset()
        .unwrap()
        .objects
        .iter()
        .any(|object| matches!(object, NfObject::ListObject(nftables::schema::NfListObject::Rule(_))))
}

#[test]
fn the_last_one_takes_the_hosts_rules_away() {
    on_a_bare_machine(async || {
        let (one, two) = (allocator("1-9").await, allocator("10-19").await);
        assert!(has_rules());
        one.shutdown().await.unwrap();
        assert!(has_rules(), "the other one needs them");
        two.shutdown().await.unwrap();
        assert!(!has_rules(), "nobody needs them");

        let again = allocator("1-9").await;
        assert!(has_rules());
        let (left, right) = tokio::join!(allocator("10-19"), allocator("20-29"));
        let (left, right, again) = tokio::join!(left.shutdown(), right.shutdown(), again.shutdown());
        left.and(right).and(again).unwrap();
        assert!(!has_rules(), "also when all leave at once");
    });
}

#[test]
fn machines_that_go_on_keep_the_hosts_rules() {
    on_a_bare_machine(async || {
        let slots = allocator("1-9").await;
        fs::create_dir_all("/run/netns").unwrap();
        File::create("/run/netns/wrenn-ns-17").unwrap();
        slots.shutdown().await.unwrap();
        assert!(has_rules(), "slot 17, which is another agent's, is in use");
        fs::remove_file("/run/netns/wrenn-ns-17").unwrap();
        allocator("1-9").await.shutdown().await.unwrap();
        assert!(!has_rules());
    });
}
