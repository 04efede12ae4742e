//! A guest that sends as much as it can.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use wrenn_vmm::network::{EgressPolicy, GUEST_ADDRESS, NAMESPACE_ADDRESS};

use crate::{
    allocator, end,
    forgetting::known,
    guest,
    world::{WEB, beside, frame, open_tap},
    zone::outside,
};

const RATE: f64 = 200e6;
/// What may come at once: a second's worth, and 100 MB.
const BUCKET: f64 = 300e6;
const MAX_CONNECTIONS: usize = 8192;

/// Bytes that were dropped where they came in. As `nft` says it: the library does not read all that it writes.
fn dropped() -> f64 {
    let listed = Command::new("nft").args(["-j", "list", "ruleset"]).output().unwrap();
    let rules: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let mut objects = rules["nftables"].as_array().unwrap().iter();
    let ingress = objects.find(|object| object["rule"]["chain"] == "ingress");
    let mut parts = ingress.expect("each namespace has the rule")["rule"]["expr"].as_array().unwrap().iter();
    parts.find_map(|part| part["counter"]["bytes"].as_f64()).unwrap()
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
    let begun = Instant::now();
    let tracked = beside(slot.number(), || {
        let mut tap = open_tap("tap0");
        for port in 1..=20_000 {
            tap.write_all(&frame(GUEST_ADDRESS, outside(20), port, b"one more")).unwrap();
        }
        std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap().lines().count()
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
