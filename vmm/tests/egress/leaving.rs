//! Who takes the host's rules away. Under test in a network and mounts of its own, as on a machine without anything else.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use nftables::{
    helper::get_current_ruleset,
    schema::{NfListObject, NfObject},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use wrenn_vmm::network::{GUEST_ADDRESS, NetworkOptions, SlotAllocator};

use crate::{
    wait_for,
    world::{PRIVATE, beside, frame, ip, open_tap},
    zone::outside,
};

/// A name server in a private network.
const PRIVATE_NAME_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 53);

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
    let options =
        NetworkOptions { slots: slots.parse().unwrap(), pool: 0, name_servers: vec![PRIVATE_NAME_SERVER] };
    SlotAllocator::start(options, &BTreeSet::new()).await.unwrap()
}

fn has_rules() -> bool {
    get_current_ruleset().unwrap().objects.iter().any(
        |object| matches!(object, NfObject::ListObject(NfListObject::Rule(rule)) if rule.table == "wrenn"),
    )
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

/// As a firewall does when it loads its own, which go by connections.
fn replace_all_rules() {
    let nft = |arguments: &str| {
        assert!(Command::new("nft").args(arguments.split(' ')).status().unwrap().success());
    };
    nft("flush ruleset");
    nft("add table firewall");
    nft("add chain firewall input { type filter hook input priority 0 ; }");
    nft("add rule firewall input ct state invalid drop");
}

#[test]
fn rules_that_others_take_away_come_back() {
    on_a_bare_machine(async || {
        let slots = allocator("1-9").await;
        for _ in 0..2 {
            // They may be back before anybody looks.
            let gone = (0..100).any(|_| {
                replace_all_rules();
                !has_rules()
            });
            assert!(gone, "nothing takes them away");
            wait_for("making the rules again", has_rules).await;
        }
        // The table is there then, and nothing in it.
        assert!(Command::new("nft").args(["flush", "table", "wrenn"]).status().unwrap().success());
        wait_for("making the rules again", has_rules).await;
        slots.shutdown().await.unwrap();
        assert!(!has_rules());
    });
}

#[test]
fn what_is_forbidden_stays_so_while_the_hosts_rules_are_gone() {
    on_a_bare_machine(async || {
        let slots = allocator("31187-31187").await;
        let slot = slots.acquire().await.unwrap();
        let mut tap = beside(slot.number(), || open_tap("tap0"));
        ip("link set lo up");
        let own = [(outside(10), 9), (PRIVATE_NAME_SERVER, 53), (PRIVATE, 9)];
        let [public, name_server, private] = own.map(|(address, port)| {
            ip(&format!("addr add {address}/32 dev lo"));
            let socket = UdpSocket::bind((address, port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            socket
        });
        let heard = |socket: &UdpSocket| {
            let from = socket.recv_from(&mut [0; 8]);
            // From then on it is a connection.
            from.is_ok_and(|(_, from)| socket.send_to(b"yes", from).is_ok())
        };
        let mut say = |(address, port)| {
            tap.write_all(&frame(GUEST_ADDRESS, address, port, b"anybody")).unwrap();
        };

        // They may be back before the guest has said anything.
        let gone = (0..100).any(|_| {
            replace_all_rules();
            own.into_iter().for_each(&mut say);
            heard(&public)
        });
        assert!(gone, "nothing but the host's rules forbids its public address");
        assert!(heard(&name_server), "everybody may ask it");
        assert!(!heard(&private));

        wait_for("making the rules again", has_rules).await;
        // What came through meanwhile and was not heard yet.
        while public.recv_from(&mut [0; 8]).is_ok() {}
        say(own[0]);
        assert!(!heard(&public), "what began meanwhile does not go on");
    });
}
