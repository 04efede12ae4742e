//! Slots on the real host. Needs root and nft; uses slots 31100 to 31159, and leaves the host as it was but
//! for IPv4 forwarding.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use wrenn_vmm::network::{NetworkError, NetworkOptions, SlotAllocator, SlotNumber};

const PATIENCE: Duration = Duration::from_secs(20);
/// What does not come through in this time does not come through.
const REFUSAL: Duration = Duration::from_millis(500);

fn options(slots: &str, pool: usize) -> NetworkOptions {
    assert!(nix::unistd::geteuid().is_root(), "network slots need root");
    NetworkOptions { slots: slots.parse().unwrap(), pool, name_servers: vec![Ipv4Addr::new(10, 0, 0, 53)] }
}

async fn allocator(slots: &str, pool: usize, claimed: &[SlotNumber]) -> SlotAllocator {
    SlotAllocator::start(options(slots, pool), &claimed.iter().copied().collect::<BTreeSet<_>>())
        .await
        .unwrap()
}

fn slot(number: u16) -> SlotNumber {
    SlotNumber::try_from(number).unwrap()
}

fn namespace_path(slot: SlotNumber) -> PathBuf {
    Path::new("/run/netns").join(slot.namespace())
}

fn has_link(slot: SlotNumber) -> bool {
    Path::new("/sys/class/net").join(slot.host_veth()).exists()
}

fn has_route(slot: SlotNumber) -> bool {
    let [a, b, c, d] = slot.guest_address().octets();
    let wanted = format!("{:08X}", u32::from_le_bytes([a, b, c, d]));
    std::fs::read_to_string("/proc/thread-self/net/route").unwrap().contains(&wanted)
}

#[track_caller]
fn assert_made(slot: SlotNumber) {
    assert!(namespace_path(slot).exists() && has_link(slot) && has_route(slot), "slot {slot} is not whole");
}

#[track_caller]
fn assert_gone(slot: SlotNumber) {
    let left = (namespace_path(slot).exists(), has_link(slot), has_route(slot));
    assert_eq!(left, (false, false, false), "namespace, link or route of slot {slot} is left");
}

async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs something inside a slot's namespace.
fn inside<T: Send>(slot: SlotNumber, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(namespace_path(slot)).unwrap();
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap()
    })
}

fn connect(to: impl Into<IpAddr>, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), REFUSAL)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_made_whole_and_removed_without_a_trace() {
    let slots = allocator("31100-31100", 0, &[]).await;
    assert_eq!(slots.free(), 1);
    let begun = Instant::now();
    let slot = slots.acquire().await.unwrap();
    println!("made in {:?}", begun.elapsed());
    let number = slot.number();
    assert_made(number);
    let tap = inside(number, || Command::new("ip").args(["-o", "link", "show", "tap0"]).output().unwrap());
    assert!(String::from_utf8_lossy(&tap.stdout).contains("qlen 5000"), "{tap:?}");
    assert_eq!(slots.free(), 0);
    assert!(matches!(slots.acquire().await, Err(NetworkError::Exhausted(1))));

    slots.release(slot).await.unwrap();
    assert_gone(number);
    assert_eq!(slots.free(), 1);
    slots.shutdown().await.unwrap();
}

/// A machine on which nobody has named a namespace yet, as far as this thread and those that it starts can see. They do see
/// who else needs the host's rules.
fn see_no_namespaces() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let alone = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, alone, None::<&str>).unwrap();
    let users = Path::new("/run/wrenn");
    std::fs::create_dir_all(users).unwrap();
    let shared = File::open(users).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    std::fs::create_dir(users).unwrap();
    let shared = format!("/proc/thread-self/fd/{}", shared.as_raw_fd());
    mount(Some(shared.as_str()), users, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn a_slot_is_removed_also_when_another_program_has_named_a_namespace_after_it() {
    let ip = |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().unwrap().success());
    let work = async move || {
        let slots = allocator("31102-31102", 0, &[]).await;
        let slot = slots.acquire().await.unwrap();
        let number = slot.number();
        assert_made(number);
        ip(&["netns", "add", "wrenn-test-another"]);
        slots.release(slot).await.unwrap();
        assert_gone(number);
        ip(&["netns", "del", "wrenn-test-another"]);
        slots.shutdown().await.unwrap();
    };
    let alone = thread::spawn(move || {
        see_no_namespaces();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
    });
    alone.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_slot_is_had_also_while_it_is_made_for_the_pool() {
    for _ in 0..20 {
        let slots = allocator("31104-31104", 1, &[]).await;
        for _ in 0..2 {
            let slot = slots.acquire().await.unwrap();
            assert!(matches!(slots.acquire().await, Err(NetworkError::Exhausted(1))));
            slots.release(slot).await.unwrap();
        }
        slots.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_the_last_step_leaves_nothing() {
    let number = slot(31110);
    let slots = allocator("31110-31110", 0, &[]).await;
    // The way to the guest is there already: the kernel refuses the slot's own.
    let route = format!("{}/32", number.guest_address());
    let ip = |action: &str| {
        let status = Command::new("ip").args(["route", action, &route, "dev", "lo"]).status().unwrap();
        assert!(status.success());
    };
    ip("add");
    let made = slots.acquire().await;
    ip("del");
    assert!(matches!(&made, Err(NetworkError::Netlink { what: "adding the way in", .. })), "{made:?}");
    assert_gone(number);

    let slot = slots.acquire().await.expect("the number is free again");
    assert_made(number);
    slots.release(slot).await.unwrap();
    assert_gone(number);
    slots.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_made_ahead_and_used_again() {
    let slots = allocator("31120-31129", 2, &[]).await;
    wait_for("filling the pool", || has_route(slot(31120)) && has_route(slot(31121))).await;

    let first = slots.acquire().await.unwrap();
    let number = first.number();
    wait_for("filling it again", || has_route(slot(31122))).await;
    let second = slots.acquire().await.unwrap();
    slots.release(first).await.unwrap();
    slots.release(second).await.unwrap();
    wait_for("having all back", || slots.free() == 10).await;

    slots.shutdown().await.unwrap();
    for left in 31120..31130 {
        assert_gone(slot(left));
    }
    assert!((31120..31130).contains(&u16::from(number)));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_the_claimed_stay_and_the_rest_is_swept() {
    let before = allocator("31130-31132", 0, &[]).await;
    let (kept, lost) = (before.acquire().await.unwrap(), before.acquire().await.unwrap());
    let (kept, lost) = (kept.number(), lost.number());
    drop(before);
    // A crash in between leaves a name without a namespace.
    File::create(namespace_path(slot(31132))).unwrap();

    let after = allocator("31130-31132", 0, &[kept]).await;
    assert_gone(lost);
    assert!(!namespace_path(slot(31132)).exists());
    assert_made(kept);
    assert_eq!(after.free(), 2);
    assert!(matches!(after.claim(lost).await, Err(NetworkError::NotClaimed(_))));
    let kept = after.claim(kept).await.unwrap();
    after.sweep().await.unwrap();
    assert_made(kept.number());
    let number = kept.number();
    after.release(kept).await.unwrap();
    assert_gone(number);
    after.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_slot_that_is_damaged_is_removed_and_free() {
    let before = allocator("31140-31140", 0, &[]).await;
    let number = before.acquire().await.unwrap().number();
    drop(before);
    nix::mount::umount(&namespace_path(number)).unwrap();

    let after = allocator("31140-31140", 0, &[number]).await;
    assert!(after.claim(number).await.is_err());
    assert_gone(number);
    assert_eq!(after.free(), 1);
    after.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_out_of_a_namespace_reaches_neither_host_nor_neighbours() {
    let slots = allocator("31150-31151", 0, &[]).await;
    let (one, two) = (slots.acquire().await.unwrap(), slots.acquire().await.unwrap());
    let (a, b) = (one.number(), two.number());

    let on_host = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let host_port = on_host.local_addr().unwrap().port();
    let neighbour = inside(b, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let neighbour_port = neighbour.local_addr().unwrap().port();

    // A link that has only just been made carries nothing for up to a second.
    let reaches = |to: Ipv4Addr, port: u16| connect(to, port).is_ok();
    wait_for("reaching the host's own service", || reaches(a.host_address(), host_port)).await;
    wait_for("reaching the namespace", || reaches(b.namespace_address(), neighbour_port)).await;
    let refused = inside(a, || {
        let host = connect(a.host_address(), host_port);
        let neighbour = connect(b.namespace_address(), neighbour_port);
        let metadata = connect(Ipv4Addr::new(169, 254, 169, 254), 80);
        [host, neighbour, metadata].map(|attempt| attempt.is_err())
    });
    assert_eq!(refused, [true, true, true], "host, neighbour, metadata service");

    for slot in [one, two] {
        slots.release(slot).await.unwrap();
    }
    slots.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_outside_of_the_range_by_now_is_not_used_again() {
    let before = allocator("31150-31150", 0, &[]).await;
    let number = before.acquire().await.unwrap().number();
    drop(before);

    let after = allocator("31152-31153", 2, &[number]).await;
    let outside = after.claim(number).await.unwrap();
    wait_for("filling the pool", || after.free() == 2).await;
    let taken = [after.acquire().await.unwrap(), after.acquire().await.unwrap()];
    // Its pool has room.
    after.release(outside).await.unwrap();
    assert_gone(number);
    assert!(matches!(after.acquire().await, Err(NetworkError::Exhausted(2))));
    for slot in taken {
        after.release(slot).await.unwrap();
    }
    after.shutdown().await.unwrap();
}
