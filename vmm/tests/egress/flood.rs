//! A guest that sends as much as it can.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use wrenn_vmm::network::{EgressPolicy, GUEST_ADDRESS, NAMESPACE_ADDRESS, SlotNumber};

use crate::{
    allocator, end,
    forgetting::known,
    guest, policy, wait_for,
    world::{NAME_SERVER, SILENT, SOURCE_PORT, WEB, beside, frame, open_tap},
    zone::outside,
};

const RATE: f64 = 200e6;
/// What may come at once: a second's worth, and 100 MB.
const BUCKET: f64 = 300e6;
const MAX_CONNECTIONS: usize = 4096;
/// By TCP, a second and at once.
const BEGINNINGS: f64 = 50.0;
const BEGINNINGS_AT_ONCE: usize = 2048;

/// Bytes that were dropped where they came in. As `nft` says it: the library does not read all that it writes.
fn dropped() -> f64 {
    let listed = Command::new("nft").args(["-j", "list", "ruleset"]).output().unwrap();
    let rules: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let mut objects = rules["nftables"].as_array().unwrap().iter();
    let ingress = objects.find(|object| object["rule"]["chain"] == "ingress");
    let mut parts = ingress.expect("each namespace has the rule")["rule"]["expr"].as_array().unwrap().iter();
    parts.find_map(|part| part["counter"]["bytes"].as_f64()).unwrap()
}

/// The connections of the thread's namespace.
fn tracked() -> String {
    std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap()
}

/// Ends a connection as one that failed, without a word that the other side would have to answer.
fn reset(stream: TcpStream) {
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

/// A link that has only just been made carries nothing for up to a second.
async fn carrying(slot: SlotNumber) {
    wait_for("carrying a packet", || {
        beside(slot, || open_tap("tap0").write_all(&frame(GUEST_ADDRESS, outside(20), 9, b"first")).unwrap());
        known(slot) > 0
    })
    .await;
}

/// What a guest sent, and what of it was dropped where it came in, in bytes.
struct Flood {
    sent: f64,
    dropped: f64,
    seconds: f64,
}

/// Floods from one slot with a datagram until a neighbour has done its work, and so much was sent.
async fn flood(slots: &str, to: Ipv4Addr, payload: &[u8], least: f64) -> Flood {
    let slots = allocator(slots, 0, &[]).await;
    let flooding = slots.acquire().await.unwrap();
    let number = flooding.number();
    let neighbour = guest(&slots, &EgressPolicy::default()).await;
    let stop = AtomicBool::new(false);
    let flood = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            beside(number, || {
                let mut tap = open_tap("tap0");
                let frame = frame(GUEST_ADDRESS, to, 9, payload);
                let begun = Instant::now();
                let mut sent = 0.0;
                while !stop.load(Ordering::Relaxed) || sent < least {
                    sent += (tap.write(&frame).unwrap() - 10) as f64;
                }
                Flood { sent, dropped: dropped(), seconds: begun.elapsed().as_secs_f64() }
            })
        });
        for _ in 0..300 {
            neighbour.assert_reaches(outside(10), WEB);
        }
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap()
    });
    let Flood { sent, dropped, seconds } = flood;
    let (rate, passed) = (sent / seconds / 1e6, (sent - dropped) / seconds / 1e6);
    println!("sent {rate:.0} MB/s for {seconds:.2} s, of which {passed:.0} MB/s passed");
    slots.release(flooding).await.unwrap();
    end(slots, [neighbour]).await;
    flood
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_cut_to_its_rate_and_neighbours_go_on() {
    // Nobody takes it there.
    let Flood { sent, dropped, seconds } =
        flood("31180-31181", NAMESPACE_ADDRESS, &[0; 60_000], 2.0 * BUCKET).await;
    let passed = sent - dropped;
    assert!(passed <= (BUCKET + RATE * seconds) * 1.02, "{passed} bytes in {seconds} s");
    assert!(passed >= BUCKET.min(sent) * 0.98, "so much may come at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_small_packets_leaves_neighbours_their_share() {
    let Flood { sent, .. } = flood("31183-31184", outside(20), &[0; 16], 0.0).await;
    assert!(sent > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_guest_does_not_fill_the_hosts_table_of_connections() {
    let slots = allocator("31182-31182", 0, &[]).await;
    let slot = slots.acquire().await.unwrap();
    carrying(slot.number()).await;
    let begun = Instant::now();
    let tracked = beside(slot.number(), || {
        let mut tap = open_tap("tap0");
        for port in 1..=20_000 {
            tap.write_all(&frame(GUEST_ADDRESS, outside(20), port, b"one more")).unwrap();
        }
        tracked().lines().count()
    });
    println!("{tracked} connections after 20000 beginnings in {:?}", begun.elapsed());
    assert!((MAX_CONNECTIONS * 9 / 10..=MAX_CONNECTIONS).contains(&tracked), "{tracked} connections");
    let number = slot.number();
    let of_guest = known(number);
    assert!((1..=MAX_CONNECTIONS).contains(&of_guest), "{of_guest} connections on the host");
    let begun = Instant::now();
    slots.release(slot).await.unwrap();
    println!("released in {:?}", begun.elapsed());
    assert_eq!(known(number), 0, "nor do those that come after it");
    slots.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_counts_also_what_the_namespace_does_not() {
    let slots = allocator("31188-31188", 0, &[]).await;
    let slot = slots.acquire().await.unwrap();
    carrying(slot.number()).await;
    // What begins in the namespace itself passes none of its bounds.
    beside(slot.number(), || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        for port in 1..=20_000 {
            socket.send_to(b"one more", (outside(20), port)).unwrap();
        }
    });
    let of_slot = known(slot.number());
    assert!((MAX_CONNECTIONS * 9 / 10..=MAX_CONNECTIONS).contains(&of_slot), "{of_slot} connections");
    slots.release(slot).await.unwrap();
    slots.shutdown().await.unwrap();
}

/// Or the namespace counts it no more, and the host goes on to remember it for days.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_does_not_end_by_a_packet_that_the_host_never_sees() {
    let slots = allocator("31179-31179", 0, &[]).await;
    let guest = guest(&slots, &EgressPolicy::default()).await;
    guest.run(|| {
        let stream = TcpStream::connect((outside(10), SILENT)).unwrap();
        stream.set_ttl(1).unwrap();
        reset(stream);
    });
    // What comes after it has come through.
    guest.assert_reaches(outside(10), WEB);
    let port = format!(" dport={SILENT} ");
    let known = beside(guest.number, tracked);
    let entry = known.lines().find(|line| line.contains(&port)).expect("it is tracked");
    assert!(entry.contains(" ESTABLISHED "), "{entry}");
    end(slots, [guest]).await;
}

/// Of those that ended none is counted, but each is remembered for a while.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_at_once_are_begun_at_a_rate() {
    let slots = allocator("31189-31189", 0, &[]).await;
    let guest = guest(&slots, &EgressPolicy::default()).await;
    guest.assert_reaches(outside(10), WEB);
    let to = SocketAddr::from((outside(10), WEB));
    let begun = Instant::now();
    let made = guest.run(|| {
        let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(700)).map(reset);
        let (mut made, mut lost) = (0, 0);
        while made < 2 * BEGINNINGS_AT_ONCE {
            match connect() {
                Ok(()) => made += 1,
                // For a reason of its own: so many may come at once.
                Err(_) if made + 1 < BEGINNINGS_AT_ONCE && lost < 3 => lost += 1,
                Err(_) => break,
            }
        }
        made
    });
    let elapsed = begun.elapsed();
    println!("{made} connections in {elapsed:?}");
    assert!(made + 1 >= BEGINNINGS_AT_ONCE, "{made} connections");
    let most = BEGINNINGS_AT_ONCE as f64 + BEGINNINGS * elapsed.as_secs_f64();
    assert!(made as f64 <= most + 1.0, "{made} connections in {elapsed:?}");
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_answers_questions_none_is_let_in() {
    let slots = allocator("31166-31166", 0, &[]).await;
    let mut slot = slots.acquire().await.unwrap();
    for policy in [EgressPolicy::default(), policy(false, &[], &["198.51.100.0/24"])] {
        slot.restrict(&policy, &[NAME_SERVER]).await.unwrap();
        let known = beside(slot.number(), || {
            open_tap("tap0").write_all(&frame(GUEST_ADDRESS, NAMESPACE_ADDRESS, 53, b"anybody")).unwrap();
            tracked()
        });
        assert!(!known.contains(&format!("dst={NAMESPACE_ADDRESS}")), "{known}");
    }
    slots.release(slot).await.unwrap();
    slots.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_count_as_connections() {
    let slots = allocator("31167-31167", 0, &[]).await;
    let mut slot = slots.acquire().await.unwrap();
    slot.restrict(&policy(true, &["www.example.com"], &[]), &[NAME_SERVER]).await.unwrap();
    let known = beside(slot.number(), || {
        let mut tap = open_tap("tap0");
        let mut question = frame(GUEST_ADDRESS, NAME_SERVER, 53, b"anybody");
        let mut ports = (1..=u16::MAX).cycle();
        let begun = Instant::now();
        // They are let in at a rate of their own.
        while begun.elapsed() < Duration::from_secs(8) {
            for port in ports.by_ref().take(100) {
                question[SOURCE_PORT..][..2].copy_from_slice(&port.to_be_bytes());
                tap.write_all(&question).unwrap();
            }
        }
        tracked().lines().count()
    });
    println!("{known} questions are remembered");
    assert!((MAX_CONNECTIONS * 9 / 10..=MAX_CONNECTIONS).contains(&known), "{known} questions");
    slots.release(slot).await.unwrap();
    slots.shutdown().await.unwrap();
}
