//! A guest that sends as much as it can.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use nftables::{
    helper::get_current_ruleset,
    schema::{NfListObject, NfObject},
    stmt::{Counter, Statement},
};
use wrenn_vmm::network::{EgressPolicy, GUEST_ADDRESS, GUEST_MAC, NAMESPACE_ADDRESS};

use crate::{
    allocator, end, guest,
    world::{WEB, beside, open_tap},
    zone::outside,
};

const NAMESPACE_MAC: [u8; 6] = [0x02, 0x57, 0x52, 0x4e, 0x00, 0x16];
const RATE: f64 = 200e6;
/// What may come at once: a second's worth, and 100 MB.
const BUCKET: f64 = 300e6;
const MAX_CONNECTIONS: usize = 8192;

/// Bytes that were dropped where they came in.
fn dropped() -> f64 {
    let rules = get_current_ruleset().unwrap();
    let ingress = rules.objects.iter().find_map(|object| match object {
        NfObject::ListObject(NfListObject::Rule(rule)) if rule.chain == "ingress" => Some(rule),
        _ => None,
    });
    let counter = ingress.expect("each namespace has the rule").expr.iter().find_map(|part| match part {
        Statement::Counter(Counter::Anonymous(Some(counter))) => counter.bytes,
        _ => None,
    });
    counter.unwrap() as f64
}

/// A datagram from the guest, as it comes to its gateway, with a header for the TAP before it.
fn frame(to: Ipv4Addr, port: u16, payload: usize) -> Vec<u8> {
    let length = 20 + 8 + payload;
    let mut frame = vec![0; 10];
    frame.extend(NAMESPACE_MAC);
    frame.extend(GUEST_MAC);
    frame.extend([0x08, 0x00]);
    let mut header = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(GUEST_ADDRESS.octets());
    header.extend(to.octets());
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    for field in [9, port, 8 + payload as u16, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.resize(frame.len() + payload, 0);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_cut_to_its_rate_and_neighbours_go_on() {
    let slots = allocator("31180-31181", 0, &[]).await;
    let flooding = slots.acquire().await.unwrap();
    let number = flooding.number();
    let neighbour = guest(&slots, &EgressPolicy::default()).await;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (stop, neighbour) = (&stop, &neighbour);
        let flood = scope.spawn(move || {
            beside(number, || {
                let mut tap = open_tap("tap0");
                // Nobody takes it there.
                let frame = frame(NAMESPACE_ADDRESS, 9, 60_000);
                let begun = Instant::now();
                let mut sent = 0.0;
                // Also when the neighbour is done sooner: more than comes at once.
                while !stop.load(Ordering::Relaxed) || sent < 2.0 * BUCKET {
                    sent += (tap.write(&frame).unwrap() - 10) as f64;
                }
                (sent, begun.elapsed().as_secs_f64(), dropped())
            })
        });
        for _ in 0..20 {
            neighbour.assert_reaches(outside(10), WEB);
        }
        stop.store(true, Ordering::Relaxed);
        let (sent, seconds, dropped) = flood.join().unwrap();
        let passed = sent - dropped;
        println!(
            "sent {:.0} MB/s for {seconds:.2} s, of which {:.0} MB/s passed",
            sent / seconds / 1e6,
            passed / seconds / 1e6
        );
        assert!(passed <= (BUCKET + RATE * seconds) * 1.02, "{passed} bytes in {seconds} s");
        assert!(passed >= BUCKET.min(sent) * 0.98, "a burst passes");
    });
    slots.release(flooding).await.unwrap();
    end(slots, [neighbour]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_guest_does_not_fill_the_hosts_table_of_connections() {
    let slots = allocator("31182-31182", 0, &[]).await;
    let slot = slots.acquire().await.unwrap();
    let begun = Instant::now();
    let tracked = beside(slot.number(), || {
        let mut tap = open_tap("tap0");
        for port in 1..=20_000 {
            tap.write_all(&frame(outside(20), port, 16)).unwrap();
        }
        std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap().lines().count()
    });
    println!("{tracked} connections after 20000 beginnings in {:?}", begun.elapsed());
    assert!((MAX_CONNECTIONS * 9 / 10..=MAX_CONNECTIONS).contains(&tracked), "{tracked} connections");
    let host = format!("src={} ", slot.number().namespace_address());
    let table = std::fs::read_to_string("/proc/net/nf_conntrack").unwrap();
    let of_guest = table.lines().filter(|line| line.contains(&host)).count();
    assert!((1..=MAX_CONNECTIONS).contains(&of_guest), "{of_guest} connections on the host");
    slots.release(slot).await.unwrap();
    slots.shutdown().await.unwrap();
}
