//! Services in a capsule: found, and reached through the proxy.

use std::time::{Duration, Instant};

use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;
use wrenn_proto::envd::v1 as envd;

use crate::http::{Answer, Proxy};
use crate::server::{listening, serve};
use crate::support::calls::{capsule, capsules, create, new_id, only, run, soon, until};
use crate::support::end;
use crate::{cause, ended, finish, site, state};

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_the_ports_of_a_capsule() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let proxy = Proxy::of(&site, &agent);
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();

    let refused = proxy.connect().await.get(&id, 8080, "/").await;
    assert_eq!((refused.status, refused.error()), (502, Some("PORT_CLOSED")));
    let refused = proxy.connect().await.get(&id, wrenn_proto::ENVD_PORT, "/").await;
    assert_eq!((refused.status, refused.error()), (403, Some("PORT_RESERVED")));
    let refused = proxy.connect().await.get(&new_id(), 8080, "/").await;
    assert_eq!((refused.status, refused.error()), (404, Some("CAPSULE_NOT_FOUND")));

    serve(&mut client, &id, 8080).await;
    listening(&proxy, &id, 8080).await;
    let mut connection = proxy.connect().await;
    let one = connection.get(&id, 8080, "/echo?a=b%20c").await;
    assert_eq!((one.status, one.error()), (200, None));
    let text = one.text();
    assert!(text.contains("GET /echo?a=b%20c HTTP/1.1\r\n"), "{text}");
    assert!(!text.to_lowercase().contains("x-wrenn-"), "what is ours is not passed on: {text}");
    let two = connection.post(&id, 8080, "/echo", &vec![b'x'; 3 << 20]).await;
    assert!(two.text().ends_with(&"x".repeat(3 << 20)));
    let pid = |answer: &Answer| answer.text().lines().next().unwrap().to_owned();
    assert_eq!(pid(&one), pid(&two), "the same connection into the guest");

    // A stream comes as it is made.
    let mut endless = proxy.connect().await;
    endless.send(&id, 8080, "GET", "/endless", &[], b"").await;
    let mut first = endless.head().await;
    assert_eq!(first.status, 200);
    while first.body.len() < 3 * 11 {
        endless.more(&mut first.body).await;
    }

    // So does a tunnel, both ways.
    let mut tunnel = proxy.connect().await;
    let upgrade = [("connection", "upgrade"), ("upgrade", "echo")];
    tunnel.send(&id, 8080, "GET", "/tunnel", &upgrade, b"").await;
    let switched = tunnel.head().await;
    assert_eq!((switched.status, switched.header("upgrade")), (101, Some("echo")));
    for word in ["to ", "and ", "fro"] {
        tunnel.write(word.as_bytes()).await;
        let mut back = Vec::new();
        while back.len() < word.len() {
            tunnel.more(&mut back).await;
        }
        assert_eq!(back, word.as_bytes());
    }

    // The end of a life ends all of them, and says so where an answer has not begun.
    end(site.vmm()).unwrap();
    tunnel.until_closed().await;
    endless.until_closed().await;
    until("the capsule is stopped", async || {
        client.get_capsule(capsule(&id)).await.unwrap().into_inner().state() == CapsuleState::Stopped
    })
    .await;
    let refused = connection.get(&id, 8080, "/").await;
    assert_eq!((refused.status, refused.error()), (503, Some("CAPSULE_NOT_RUNNING")));
    finish(agent, site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_waits_for_requests_in_flight_and_a_request_keeps_a_capsule_awake() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let proxy = Proxy::of(&site, &agent);
    let id = new_id();
    client.create_capsule(agent::CreateCapsuleRequest { timeout_sec: 2, ..create(&id) }).await.unwrap();
    serve(&mut client, &id, 80).await;
    listening(&proxy, &id, 80).await;

    // What is in flight comes to its end before the pause.
    let mut slow = proxy.connect().await;
    slow.send(&id, 80, "GET", "/slow", &[], b"").await;
    let answered = tokio::spawn(async move { slow.answer().await });
    until("the request is in the guest", async || {
        run(&mut client, &id, "test -e /tmp/slow").await.1.exit_code == Some(0)
    })
    .await;
    client.pause_capsule(capsule(&id)).await.unwrap();
    let answered = answered.await.unwrap();
    assert_eq!((answered.status, answered.error()), (200, None));
    let mut connection = proxy.connect().await;
    let refused = connection.get(&id, 80, "/").await;
    assert_eq!((refused.status, refused.error()), (503, Some("CAPSULE_PAUSED")));

    // The next life has connections of its own.
    client.resume_capsule(capsule(&id)).await.unwrap();
    assert_eq!(connection.get(&id, 80, "/echo").await.status, 200);

    // Longer than the timeout: a stream that is read is activity.
    let mut endless = proxy.connect().await;
    endless.send(&id, 80, "GET", "/endless", &[], b"").await;
    let mut body = endless.head().await.body;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        endless.more(&mut body).await;
    }
    assert_eq!(state(&mut client, &id).await, CapsuleState::Running);
    drop(endless);
    until("it falls asleep once nobody reads", async || {
        state(&mut client, &id).await == CapsuleState::Paused
    })
    .await;

    client.destroy_capsule(capsule(&id)).await.unwrap();
    finish(agent, site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_listed_as_they_open_and_whoever_looks_keeps_nobody_awake() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let proxy = Proxy::of(&site, &agent);
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();
    let mut events = client.watch_ports(capsule(&id)).await.unwrap().into_inner();
    let synced = soon("what listens already", events.message()).await.unwrap().unwrap().event;
    assert!(
        matches!(synced, Some(envd::port_event::Event::Synced(_))),
        "nothing but envd listens: {synced:?}"
    );
    serve(&mut client, &id, 3000).await;
    let opened = soon("a port", events.message()).await.unwrap().unwrap().event;
    let Some(envd::port_event::Event::Opened(port)) = opened else { panic!("{opened:?}") };
    assert_eq!(port.number, 3000);
    assert_eq!(proxy.connect().await.get(&id, 3000, "/echo").await.status, 200);
    client.set_timeout(agent::SetTimeoutRequest { capsule_id: id.clone(), timeout_sec: 3 }).await.unwrap();
    let listed = only(client.list_ports(capsules(&[&id])).await).await.ports;
    assert_eq!(listed.iter().map(|port| port.number).collect::<Vec<_>>(), [3000]);
    until("it fell asleep", async || {
        // Whether it is asleep is looked at last: by then somebody may be asking.
        let asked = client.list_ports(capsules(&[&id])).await.unwrap().into_inner();
        drop(asked);
        state(&mut client, &id).await == CapsuleState::Paused
    })
    .await;
    let end = ended(events).await;
    assert_eq!(cause(&end), Some("CAPSULE_PAUSED"), "it fell asleep although it was looked at");
    client.destroy_capsule(capsule(&id)).await.unwrap();
    finish(agent, site).await;
}
