//! One operation's noise and one reader's silence are nobody else's trouble.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wrenn_api::ws::Limits;

use crate::{
    DEADLINE,
    client::{Client, data},
    eventually,
    gate::{Probe, TestServer},
};

/// Size of the events of a flood: what a chunk of output comes to.
const CHUNK: u64 = 64 * 1024;

/// What may be under way to a reader that has stopped: the lane (its limit and one event over it), one event with
/// the writer, and both sockets' buffers, which the kernel makes twice what is asked for.
const UNDER_WAY: u64 = (64 * 1024 + CHUNK) + CHUNK + 2 * 64 * 1024 + 2 * 64 * 1024;

fn flood() -> String {
    format!("subscription {{ flood(bytes: {CHUNK}) }}")
}

/// Waits until the flood has stood still for a while.
async fn standstill(probe: &Probe) -> u64 {
    const QUIET: Duration = Duration::from_millis(500);
    let (mut seen, mut since) = (0, Instant::now());
    eventually("the flood stands still", || {
        if probe.produced() != seen {
            (seen, since) = (probe.produced(), Instant::now());
        }
        seen > 0 && since.elapsed() > QUIET
    })
    .await;
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_starves_neither_a_slow_tick_nor_the_pings() {
    const TICK: Duration = Duration::from_millis(20);
    const TICKS: u64 = 100;
    // A tenth of a second would be felt in a terminal. The rest is for a busy machine.
    const LATE: Duration = Duration::from_secs(5);

    let limits = Limits::default();
    // A pong waits for what was under way unread when the ping was sent, and for nothing that came after it.
    let most_before_pong = limits.window as u64 / CHUNK + 1;
    let server = TestServer::start(limits);
    let mut client = Client::connect(server.address).await;
    client.subscribe("flood", &flood()).await;
    client.subscribe("tick", "subscription { ticks(everyMs: 20) }").await;
    let start = Instant::now();
    let (mut ticks, mut floods, mut pongs) = (0, 0u64, 0u64);
    let mut first_tick = None;
    let mut ping_sent = None;
    let mut worst_tick = Duration::ZERO;
    let mut worst_pong = 0;
    while ticks < TICKS {
        assert!(start.elapsed() < DEADLINE, "{ticks} ticks among {floods} floods");
        if ping_sent.is_none() {
            client.say(json!({ "type": "ping", "payload": { "n": pongs } })).await;
            ping_sent = Some(floods);
        }
        let message = client.receive().await;
        match (&message["type"], &message["id"]) {
            (Value::String(pong), _) if pong == "pong" => {
                assert_eq!(message["payload"]["n"], pongs);
                worst_pong = worst_pong.max(floods - ping_sent.take().expect("it was asked for"));
                pongs += 1;
            }
            (_, Value::String(id)) if id == "tick" => {
                assert_eq!(data(&message), &json!({ "ticks": ticks }));
                let first = *first_tick.get_or_insert_with(Instant::now);
                let due = first + TICK * u32::try_from(ticks).unwrap();
                worst_tick = worst_tick.max(Instant::now().saturating_duration_since(due));
                ticks += 1;
            }
            _ => floods += 1,
        }
    }
    eprintln!(
        "{floods} floods; worst tick {worst_tick:?} late, worst of {pongs} pongs after {worst_pong} of them"
    );
    assert!(floods > TICKS && pongs > 0);
    assert!(worst_tick < LATE, "a tick was {worst_tick:?} late");
    assert!(worst_pong <= most_before_pong, "a pong came after {worst_pong} floods");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_holds_its_producer_back_and_nobody_else() {
    let server = TestServer::start(Limits::default());
    let mut stopped = Client::connect(server.address).await;
    let mut other = Client::connect(server.address).await;
    stopped.subscribe("flood", &flood()).await;
    loop {
        let produced = standstill(&server.probe).await;
        eprintln!("{produced} bytes were under way when the producer stood still");
        assert!(produced <= UNDER_WAY, "{produced} bytes are under way, more than {UNDER_WAY}");

        other.subscribe("1", "subscription { count(to: 5000) }").await;
        for number in 0..5000 {
            assert_eq!(data(&other.receive().await), &json!({ "count": number }));
        }
        assert_eq!(other.receive().await["type"], "complete");
        // On a busy machine it may only have seemed to stand still.
        if server.probe.produced() == produced {
            break;
        }
    }

    // Nothing is lost when it reads on.
    for number in 0..100 {
        let message = stopped.receive().await;
        let event = data(&message)["flood"].as_str().unwrap();
        assert_eq!((event.len() as u64, event[..8].parse()), (CHUNK, Ok(number)));
    }
}

/// The network may hold much more than the server wants to be on its way: it counts what was read, not what was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffers_of_the_network_hold_no_more_than_the_window() {
    const WIDE: u32 = 16 * 1024 * 1024;
    let server = TestServer::start(Limits::default());
    let protocol = [("sec-websocket-protocol", "graphql-transport-ws")];
    let mut client = Client::open_wide(server.address, &protocol, WIDE).await.acknowledged().await;
    client.subscribe("flood", &flood()).await;
    // It is read for a while, so that the kernel opens its buffers.
    for _ in 0..500 {
        client.receive().await;
    }
    let read = 500 * CHUNK;
    let under_way = standstill(&server.probe).await - read;
    let bound = Limits::default().window as u64 + CHUNK + (64 * 1024 + CHUNK) + CHUNK;
    eprintln!("{under_way} bytes were under way");
    assert!(under_way <= bound, "{under_way} bytes are under way, more than {bound}");
    // And it goes on where it stood.
    for number in 500..1000 {
        let message = client.receive().await;
        assert_eq!(data(&message)["flood"].as_str().unwrap()[..8].parse(), Ok(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_is_cancelled_at_once() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    client.subscribe("flood", &flood()).await;
    standstill(&server.probe).await;
    // Still nothing is read.
    client.complete("flood").await;
    eventually("the flood is gone", || server.probe.alive() == 0).await;
    client.subscribe("after", "{ hello }").await;
    let answer = loop {
        let message = client.receive().await;
        if message["id"] == "after" {
            break message;
        }
    };
    assert_eq!(data(&answer), &json!({ "hello": "world" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_reader_is_kept_until_the_stall_timeout() {
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        stall_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let server = TestServer::start(limits);
    let mut client = Client::connect(server.address).await;
    let start = Instant::now();
    client.subscribe("flood", &flood()).await;
    eventually("the flood runs", || server.probe.alive() == 1).await;
    eventually("it is dropped", || server.probe.alive() == 0).await;
    assert!(start.elapsed() >= Duration::from_secs(2), "dropped after {:?}", start.elapsed());
}
