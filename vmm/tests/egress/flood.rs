//! A guest that sends as much as it can.

use std::{
    io::Write as _,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use nftables::{
    helper::get_current_ruleset,
    schema::{NfListObject, NfObject},
    stmt::{Counter, Statement},
};
use wrenn_vmm::network::{EgressPolicy, GUEST_ADDRESS, NAMESPACE_ADDRESS};

use crate::{
    allocator, end, guest,
    world::{WEB, beside, open_tap},
    zone::outside,
};

const RATE: f64 = 200e6;
const BURST: f64 = 100e6;
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

/// A frame from the guest to its gateway, where nobody takes it, with a header for the TAP before it.
fn frame(payload: usize) -> Vec<u8> {
    let length = 20 + 8 + payload;
    let mut frame = vec![0; 10];
    frame.extend([0x02, 0x57, 0x52, 0x4e, 0x00, 0x16, 0x02, 0x57, 0x52, 0x4e, 0x00, 0x15, 0x08, 0x00]);
    let mut header = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(GUEST_ADDRESS.octets());
    header.extend(NAMESPACE_ADDRESS.octets());
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    let udp = (8 + payload) as u16;
    frame.extend([0, 9, 0, 9, (udp >> 8) as u8, udp as u8, 0, 0]);
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
                let frame = frame(60_000);
                let begun = Instant::now();
                let mut sent = 0.0;
                // Also when the neighbour is done sooner: more than a burst.
                while !stop.load(Ordering::Relaxed) || sent < 4.0 * BURST {
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
        assert!(passed <= (BURST + RATE * seconds) * 1.02, "{passed} bytes in {seconds} s");
        assert!(passed >= BURST.min(sent) * 0.98, "a burst passes");
    });
    slots.release(flooding).await.unwrap();
    end(slots, [neighbour]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_guest_does_not_fill_the_hosts_table_of_connections() {
    let slots = allocator("31182-31182", 0, &[]).await;
    let guest = guest(&slots, &EgressPolicy::default()).await;
    guest.assert_reaches(outside(10), WEB);
    guest.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1..=u16::MAX {
            // What does not fit into a queue is lost.
            let _lost = socket.send_to(b"one connection", (outside(20), port));
        }
    });
    let host = guest.number.namespace_address().to_string();
    let tracked = std::fs::read_to_string("/proc/net/nf_conntrack").unwrap();
    let own = tracked.lines().filter(|line| line.contains(&format!("src={host} "))).count();
    println!("{own} connections of one guest");
    assert!((1000..=MAX_CONNECTIONS + 100).contains(&own), "{own} connections of one guest");
    end(slots, [guest]).await;
}
