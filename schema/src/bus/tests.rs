//! The promises of a bus: the same for one process and for replicas; then what replicas are promised besides.

#[path = "../../tests/redis_server/mod.rs"]
mod redis_server;

use std::time::Duration;

use nix::sys::signal::Signal;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use uuid::Uuid;
use wrenn_entities::{
    CapsuleId, TeamId, TemplateId,
    capsule::{CapsuleState, Model},
    id::TypedId,
    json::Labels,
    time::now,
};

use self::redis_server::RedisServer;
use super::{
    hub::{OF_CAPSULE, OF_TEAM},
    link::Pace,
    *,
};

/// Longer than anything here takes; only a failing test waits for it.
const DEADLINE: Duration = Duration::from_secs(20);

/// As in production, ten times as fast.
fn pace() -> Pace {
    Pace {
        heartbeat: Duration::from_millis(100),
        silence: Duration::from_millis(600),
        look: Duration::from_millis(20),
        refresh: Duration::from_millis(300),
        forget: Duration::from_secs(5),
        retry: Duration::from_millis(25),
        patience: Duration::from_millis(500),
    }
}

fn capsule(generation: i64) -> Model {
    Model {
        id: CapsuleId::generate(),
        team_id: TeamId::generate(),
        template_id: TemplateId::MINIMAL,
        host_id: None,
        parent_id: Some(CapsuleId::generate()),
        fork_id: Some(Uuid::now_v7()),
        name: Some("ä\"\u{0}\u{10ffff}".to_owned()),
        state: CapsuleState::Snapshotting,
        generation,
        cause_code: None,
        cause_message: Some(String::new()),
        vcpus: 1,
        memory_mib: 256,
        disk_mib: 1024,
        timeout_sec: 0,
        auto_resume: false,
        labels: Labels([("a".to_owned(), "b".to_owned())].into()),
        created_by: None,
        created_at: now(),
        updated_at: now(),
        started_at: None,
        last_active_at: Some(now()),
        operation_until: None,
    }
}

/// `row` at another generation.
fn at(row: &Model, generation: i64) -> Change {
    Change::Capsule(Arc::new(Model { generation, ..row.clone() }))
}

async fn receive(subscriber: &mut Subscriber) -> Received {
    timeout(DEADLINE, subscriber.receive()).await.expect("something comes")
}

/// The next change; that something may have been missed is skipped.
async fn change(subscriber: &mut Subscriber) -> Change {
    loop {
        if let Received::Change(change) = receive(subscriber).await {
            return change;
        }
    }
}

async fn missed(subscriber: &mut Subscriber) {
    while receive(subscriber).await != Received::Missed {}
}

/// Two ends of a bus: where one publishes and where the other listens.
struct World {
    here: Box<dyn Bus>,
    there: Box<dyn Bus>,
    hub: Arc<hub::Hub>,
    _redis: Option<RedisServer>,
}

impl World {
    async fn in_process() -> Self {
        let bus = LocalBus::default();
        let hub = bus.hub.clone();
        let other_end = LocalBus { hub: hub.clone() };
        Self { here: Box::new(bus), there: Box::new(other_end), hub, _redis: None }
    }

    async fn over_redis() -> Self {
        let redis = RedisServer::start().await;
        let (here, there) = replicas(&redis).await;
        let hub = there.hub.clone();
        Self { here: Box::new(here), there: Box::new(there), hub, _redis: Some(redis) }
    }
}

fn replica(url: &SecretString) -> RedisBus {
    RedisBus::at(url, "test", pace()).expect("an address")
}

/// Two that hear each other.
async fn replicas(redis: &RedisServer) -> (RedisBus, RedisBus) {
    let (one, two) = (replica(&redis.url()), replica(&redis.url()));
    hear_each_other(&one, &two).await;
    hear_each_other(&two, &one).await;
    (one, two)
}

/// Waits until what one publishes arrives at the other, and nothing is pending of what it missed before.
async fn hear_each_other(from: &RedisBus, to: &RedisBus) {
    let row = capsule(0);
    let mut subscriber = to.subscribe(Topic::Capsule(row.id));
    let heard = async {
        loop {
            from.publish(at(&row, 1));
            if let Ok(Received::Change(_)) = timeout(Duration::from_millis(50), subscriber.receive()).await {
                break;
            }
        }
        // The numbers of a replica that has just been met are news, once.
        while timeout(Duration::from_millis(200), subscriber.receive()).await.is_ok() {}
    };
    timeout(DEADLINE, heard).await.expect("the replicas hear each other");
}

/// As another replica would.
async fn say(redis: &RedisServer, message: &str) {
    let client = ::redis::Client::open(redis.url().expose_secret()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis is there");
    let mut publish = ::redis::cmd("PUBLISH");
    publish.arg("wrenn:test:changes").arg(message);
    let heard: i64 = publish.query_async(&mut connection).await.expect("is published");
    assert!(heard > 0, "somebody listens");
}

macro_rules! on_both_buses {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                use super::*;

                #[tokio::test]
                async fn in_process() {
                    super::$name(World::in_process().await).await;
                }

                #[tokio::test]
                async fn over_redis() {
                    super::$name(World::over_redis().await).await;
                }
            }
        )*
    };
}

on_both_buses!(
    changes_arrive_whole_and_in_order,
    everybody_hears_what_they_asked_for,
    who_is_slow_is_told_to_look_again,
    nothing_is_kept_of_who_has_gone,
);

async fn changes_arrive_whole_and_in_order(world: World) {
    let row = capsule(0);
    let mut of_capsule = world.there.subscribe(Topic::Capsule(row.id));
    let mut of_team = world.there.subscribe(Topic::Team(row.team_id));
    for generation in 1..=50 {
        world.here.publish(at(&row, generation));
    }
    let withdrawn = Change::CapsuleWithdrawn { team_id: row.team_id, id: row.id };
    world.here.publish(withdrawn.clone());
    for subscriber in [&mut of_capsule, &mut of_team] {
        for generation in 1..=50 {
            assert_eq!(receive(subscriber).await, Received::Change(at(&row, generation)));
        }
        assert_eq!(receive(subscriber).await, Received::Change(withdrawn.clone()));
    }
}

async fn everybody_hears_what_they_asked_for(world: World) {
    let (mine, theirs) = (capsule(1), capsule(1));
    let resized = Change::TerminalResized { id: mine.id, tag: "shell".into(), columns: 100, rows: 50 };
    let mut all: Vec<Subscriber> = (0..20).map(|_| world.there.subscribe(Topic::Capsule(mine.id))).collect();
    let mut terminals = world.there.subscribe(Topic::Terminals(mine.id));
    world.here.publish(at(&theirs, 1));
    world.here.publish(resized.clone());
    world.here.publish(at(&mine, 2));
    for subscriber in &mut all {
        assert_eq!(receive(subscriber).await, Received::Change(at(&mine, 2)));
    }
    assert_eq!(receive(&mut terminals).await, Received::Change(resized));
}

async fn who_is_slow_is_told_to_look_again(world: World) {
    let row = capsule(0);
    let mut slow = world.there.subscribe(Topic::Team(row.team_id));
    let mut quick = world.there.subscribe(Topic::Capsule(row.id));
    let last = 3 * i64::try_from(OF_TEAM + OF_CAPSULE).expect("a number");
    for generation in 1..=last {
        world.here.publish(at(&row, generation));
        // Whoever reads is held up by nobody, and misses nothing.
        assert_eq!(change(&mut quick).await, at(&row, generation));
    }
    assert_eq!(receive(&mut slow).await, Received::Missed);
    world.here.publish(at(&row, last + 1));
    assert_eq!(
        change(&mut slow).await,
        at(&row, last + 1),
        "what is older than the miss is not told after it"
    );
}

async fn nothing_is_kept_of_who_has_gone(world: World) {
    let rows: Vec<Model> = (0..10).map(capsule).collect();
    let subscribers: Vec<Subscriber> = rows
        .iter()
        .flat_map(|row| [Topic::Capsule(row.id), Topic::Capsule(row.id), Topic::Team(row.team_id)])
        .map(|topic| world.there.subscribe(topic))
        .collect();
    assert_eq!(world.hub.len(), 20);
    drop(subscribers);
    assert_eq!(world.hub.len(), 0);
}

#[tokio::test]
async fn a_redis_that_is_lost_and_comes_back_leaves_nobody_stale() {
    let mut redis = RedisServer::start().await;
    let (here, there) = replicas(&redis).await;
    let row = capsule(0);
    let mut subscriber = there.subscribe(Topic::Capsule(row.id));
    let mut at_home = here.subscribe(Topic::Capsule(row.id));
    redis.kill();
    missed(&mut subscriber).await;
    here.publish(at(&row, 1));
    assert_eq!(change(&mut at_home).await, at(&row, 1), "in its own process it is told all the same");
    // As long as nothing is heard, again and again.
    missed(&mut subscriber).await;
    missed(&mut subscriber).await;
    redis.start_again().await;
    hear_each_other(&here, &there).await;
    here.publish(at(&row, 2));
    assert_eq!(change(&mut subscriber).await, at(&row, 2));
    assert!(timeout(Duration::from_secs(1), subscriber.receive()).await.is_err(), "all is well again");
}

#[tokio::test]
async fn a_redis_that_hangs_is_noticed() {
    let redis = RedisServer::start().await;
    let (here, there) = replicas(&redis).await;
    let row = capsule(0);
    let mut subscriber = there.subscribe(Topic::Capsule(row.id));
    redis.signal(Signal::SIGSTOP);
    missed(&mut subscriber).await;
    missed(&mut subscriber).await;
    redis.signal(Signal::SIGCONT);
    hear_each_other(&here, &there).await;
    here.publish(at(&row, 1));
    while change(&mut subscriber).await != at(&row, 1) {}
}

#[tokio::test]
async fn a_replica_that_falls_silent_leaves_nobody_stale_and_one_that_says_farewell_disturbs_nobody() {
    let redis = RedisServer::start().await;
    let (here, there) = replicas(&redis).await;
    let mut subscriber = there.subscribe(Topic::Capsule(CapsuleId::generate()));
    here.close().await;
    let quiet = timeout(Duration::from_secs(2), subscriber.receive()).await;
    assert!(quiet.is_err(), "after a farewell: {quiet:?}");

    // One that has spoken once and then is cut off.
    say(&redis, &format!(r#"{{"from":"{}","told":0,"word":"alive"}}"#, Uuid::now_v7())).await;
    for _ in 0..3 {
        missed(&mut subscriber).await;
    }
}

#[tokio::test]
async fn changes_that_could_not_be_told_are_noticed_by_the_next_word() {
    let redis = RedisServer::start().await;
    let (here, there) = replicas(&redis).await;
    let row = capsule(0);
    let mut subscriber = there.subscribe(Topic::Capsule(row.id));
    // As if the queue had been full.
    here.dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(receive(&mut subscriber).await, Received::Missed);
    assert!(timeout(Duration::from_secs(1), subscriber.receive()).await.is_err(), "once");
}

#[tokio::test]
async fn what_is_not_understood_is_a_miss_and_other_installations_are_not_heard() {
    let redis = RedisServer::start().await;
    let (_here, there) = replicas(&redis).await;
    let row = capsule(0);
    let mut subscriber = there.subscribe(Topic::Capsule(row.id));
    let other = RedisBus::at(&redis.url(), "other", pace()).expect("an address");
    for _ in 0..10 {
        other.publish(at(&row, 1));
        assert!(timeout(Duration::from_millis(50), subscriber.receive()).await.is_err());
    }
    for nonsense in ["", "{}", r#"{"from":1,"told":"x","word":"alive"}"#, "\u{0}"] {
        say(&redis, nonsense).await;
        assert_eq!(receive(&mut subscriber).await, Received::Missed);
    }
}

#[tokio::test]
async fn a_storm_of_changes_ends_with_the_last_one_or_a_miss() {
    let redis = RedisServer::start().await;
    let (here, there) = replicas(&redis).await;
    let row = capsule(0);
    let mut subscriber = there.subscribe(Topic::Capsule(row.id));
    // More than may wait for Redis, faster than it takes them.
    for generation in 1..=10_000 {
        here.publish(at(&row, generation));
    }
    let mut latest = 0;
    while latest < 10_000 {
        match receive(&mut subscriber).await {
            Received::Change(Change::Capsule(row)) => {
                assert!(row.generation > latest);
                latest = row.generation;
            }
            // The database has the last one.
            Received::Missed => latest = 10_000,
            Received::Change(_) => {}
        }
    }
}
