//! Who may reach what listens in a capsule, and by which URL.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use wrenn_entities::{CapsuleId, capsule::CapsuleState};
use wrenn_schema::{
    Code, Error,
    access::RequestId,
    gateway::{self, Admission, Pass, Shown, Target},
};

use crate::{
    agent::arrived,
    on_both_databases,
    world::{CREATE, World, id_of, next_data},
};

on_both_databases!(
    ports_are_public_as_they_were_set,
    visitors_are_let_in_by_what_they_show,
    a_route_is_read_once_until_the_capsule_changes,
    one_request_wakes_for_all,
    who_is_asleep_behind_our_back_is_woken_too,
    a_preview_ends_with_the_key_that_made_it,
    labels_are_replaced,
    hosts_are_dialled_apart_from_calls,
);

const SET: &str = "mutation($id: ID!, $port: Int!, $public: Boolean!) {
    setPortPublic(capsuleId: $id, port: $port, public: $public) { capsule { publicPorts ports { number public } } } }";
const PREVIEW: &str = "mutation($id: ID!, $port: Int!) {
    createPreviewUrl(capsuleId: $id, port: $port) { url expiresAt } }";

async fn set(world: &World, id: CapsuleId, port: u16, public: bool) -> Value {
    let mut set = world.ask(SET, json!({"id": id.to_string(), "port": port, "public": public})).await;
    set["setPortPublic"]["capsule"].take()
}

fn target(id: CapsuleId, port: u16) -> Target {
    Target::parse(&id.to_string(), &port.to_string()).expect("is one")
}

async fn admit(world: &World, target: Target, shown: &Shown) -> Result<Admission, Error> {
    gateway::admit(&world.services, target, shown, &RequestId("test".into())).await
}

async fn preview(world: &World, id: CapsuleId, port: u16) -> Shown {
    let made = world.ask(PREVIEW, json!({"id": id.to_string(), "port": port})).await;
    let url = made["createPreviewUrl"]["url"].as_str().expect("a URL").to_owned();
    let (root, token) = url.split_once("?wrenn_token=").expect("has a token");
    assert_eq!(root, format!("http://127.0.0.1:8080/proxy/{id}/{port}/"));
    Shown { api_key: None, token: Some(token.into()) }
}

fn refused(admission: Result<Admission, Error>) -> Code {
    admission.expect_err("is refused").code()
}

async fn ports_are_public_as_they_were_set(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    agent.open_port(3000);
    let query = "subscription($id: ID!) { capsule(id: $id) { publicPorts ports { number public } } }";
    let mut watched = Box::pin(world.subscribe(query, json!({"id": id.to_string()})).await);
    assert_eq!(next_data(&mut watched).await["capsule"]["ports"], json!([{"number": 3000, "public": false}]));
    let capsule = set(world, id, 3000, true).await;
    assert_eq!(capsule, json!({"publicPorts": [3000], "ports": [{"number": 3000, "public": true}]}));
    assert_eq!(next_data(&mut watched).await["capsule"], capsule, "who watches is told");
    assert_eq!(set(world, id, 80, true).await["publicPorts"], json!([80, 3000]), "open or not");
    assert_eq!(set(world, id, 80, true).await["publicPorts"], json!([80, 3000]));
    assert_eq!(set(world, id, 3000, false).await["publicPorts"], json!([80]));
    assert_eq!(set(world, id, 3000, false).await["publicPorts"], json!([80]));

    let fork = world
        .ask(
            "mutation($id: ID!) { forkCapsule(id: $id) { capsules { publicPorts } } }",
            json!({"id": id.to_string()}),
        )
        .await;
    assert_eq!(fork["forkCapsule"]["capsules"], json!([{"publicPorts": []}]));

    for (port, expected) in [(0, "INVALID_INPUT"), (65_536, "INVALID_INPUT"), (49_983, "FORBIDDEN")] {
        let error = world.refused(SET, json!({"id": id.to_string(), "port": port, "public": true})).await;
        assert_eq!(error.brief(), (expected, Some("port")));
        let error = world.refused(PREVIEW, json!({"id": id.to_string(), "port": port})).await;
        assert_eq!(error.brief(), (expected, Some("port")));
    }
    let url = "query($id: ID!) { capsule(id: $id) { url(port: 8080) } }";
    let shown = world.ask(url, json!({"id": id.to_string()})).await;
    assert_eq!(shown["capsule"]["url"], format!("http://127.0.0.1:8080/proxy/{id}/8080/"));
}

async fn visitors_are_let_in_by_what_they_show(world: &World) {
    let _agent = world.host("one").await;
    let (id, none) = (world.create().await, Shown::default());
    let key = |key: &SecretString| Shown { api_key: Some(key.clone()), token: None };
    let (_, stranger) = world.other_team().await;
    set(world, id, 80, true).await;

    let (public, private) = (target(id, 80), target(id, 81));
    assert_eq!(admit(world, public, &none).await.expect("is public").by, Pass::Public);
    assert_eq!(refused(admit(world, private, &none).await), Code::Unauthenticated);
    assert_eq!(admit(world, private, &key(&world.key)).await.expect("is a member").by, Pass::Key);
    assert_eq!(refused(admit(world, private, &key(&stranger)).await), Code::NotFound);
    assert_eq!(admit(world, public, &key(&stranger)).await.expect("is public").by, Pass::Public);
    assert_eq!(refused(admit(world, public, &key(&"wrn_wrong".into())).await), Code::Unauthenticated);

    let shown = preview(world, id, 81).await;
    assert!(matches!(admit(world, private, &shown).await.expect("is signed").by, Pass::Token(_)));
    assert_eq!(refused(admit(world, target(id, 82), &shown).await), Code::Unauthenticated);
    let as_key = Shown { api_key: shown.token.clone(), token: None };
    assert_eq!(refused(admit(world, private, &as_key).await), Code::Unauthenticated, "a signature is no key");
    let forked = world.ask(
        "mutation($id: ID!) { forkCapsule(id: $id) { capsules { id } } }",
        json!({"id": id.to_string()}),
    );
    let copy = id_of(&forked.await["forkCapsule"]["capsules"][0]);
    assert_eq!(refused(admit(world, target(copy, 81), &shown).await), Code::Unauthenticated, "of the parent");
    assert_eq!(refused(admit(world, target(copy, 80), &none).await), Code::Unauthenticated);

    let nobody = target("cl-0000000000000000000000001".parse().expect("an id"), 80);
    assert_eq!(
        refused(admit(world, nobody, &none).await),
        Code::Unauthenticated,
        "no different from a private one"
    );
    assert_eq!(refused(admit(world, nobody, &key(&world.key)).await), Code::NotFound);
}

async fn a_route_is_read_once_until_the_capsule_changes(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await;
    set(world, id, 80, true).await;
    let ask = async || admit(world, target(id, 80), &Shown::default()).await;
    ask().await.expect("is public");
    world.reads();
    for _ in 0..10 {
        ask().await.expect("is public");
    }
    assert_eq!(world.reads(), [""; 0], "remembered");
    let admission = ask().await.expect("is public");
    admission.host(&world.services).await.expect("runs");
    world
        .ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id.to_string()}))
        .await;
    // The change is heard of a moment later.
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    let error = loop {
        match ask().await.expect("is public").host(&world.services).await {
            Ok(_) => assert!(std::time::Instant::now() < deadline, "still said to run"),
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!((error.code(), error.cause()), (Code::FailedPrecondition, Some("CAPSULE_PAUSED")));
    set(world, id, 80, false).await;
    assert_eq!(refused(ask().await), Code::Unauthenticated, "at once");
    // The change itself is heard of later, and asks for another reading.
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    loop {
        world.reads();
        ask().await.expect_err("is private");
        if world.reads().is_empty() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "read each time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn sleeper(world: &World) -> CapsuleId {
    let made = world.ask(CREATE, json!({"input": {"autoResume": true}})).await;
    id_of(&made["createCapsule"]["capsule"])
}

async fn one_request_wakes_for_all(world: &World) {
    let agent = world.host("one").await;
    let id = sleeper(world).await;
    world
        .ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id.to_string()}))
        .await;
    set(world, id, 80, true).await;
    let gate = agent.gate("resume");
    let mut admissions = Vec::new();
    for _ in 0..50 {
        admissions.push(admit(world, target(id, 80), &Shown::default()).await.expect("is public"));
    }
    world.reads();
    let woken = futures_util::future::join_all(admissions.iter().map(|one| one.host(&world.services)));
    let open = async {
        arrived(&agent, "resume", 1).await;
        gate.add_permits(8);
    };
    let (hosts, ()) = tokio::join!(woken, open);
    for host in hosts {
        assert_eq!(host.expect("is awake"), agent.host.to_string());
    }
    assert_eq!(agent.calls("resume"), 1);
    // Those of the team's capsule, not those of the jobs.
    let looks = world.reads().into_iter().filter(|sql| sql.contains("\"capsules\".\"team_id\" =")).count();
    assert!((1..10).contains(&looks), "one looks for all of them, not {looks}");
    assert_eq!(world.row(id).await.state, CapsuleState::Running);

    let fork = world
        .ask(
            "mutation($id: ID!) { forkCapsule(id: $id) { capsules { autoResume } } }",
            json!({"id": id.to_string()}),
        )
        .await;
    assert_eq!(fork["forkCapsule"]["capsules"], json!([{"autoResume": true}]));
    world
        .ask(
            "mutation($id: ID!) { destroyCapsule(id: $id) { capsule { id } } }",
            json!({"id": id.to_string()}),
        )
        .await;
    let gone = world.until(id, CapsuleState::Stopped).await;
    assert!(gone.auto_resume);
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    loop {
        let admission = admit(world, target(id, 80), &Shown::default()).await.expect("is public");
        match admission.host(&world.services).await {
            Err(error) => break assert_eq!(error.code(), Code::FailedPrecondition),
            Ok(_) => assert!(std::time::Instant::now() < deadline, "still said to run"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn who_is_asleep_behind_our_back_is_woken_too(world: &World) {
    let agent = world.host("one").await;
    let (id, other) = (sleeper(world).await, world.create().await);
    for id in [id, other] {
        agent.put(id, wrenn_proto::agent::v1::CapsuleState::Paused);
    }
    let shown = Shown { api_key: Some(world.key.clone()), token: None };
    let admission = admit(world, target(id, 80), &shown).await.expect("is a member");
    assert_eq!(world.row(id).await.state, CapsuleState::Running, "nobody has told");
    admission.host_again(&world.services).await.expect("is woken");
    assert_eq!(agent.calls("resume"), 1);
    let admission = admit(world, target(other, 80), &shown).await.expect("is a member");
    let refused = admission.host_again(&world.services).await.expect_err("is left asleep");
    assert_eq!(refused.cause(), Some("CAPSULE_PAUSED"));
}

async fn a_preview_ends_with_the_key_that_made_it(world: &World) {
    use sea_orm::EntityTrait;
    let _agent = world.host("one").await;
    let id = world.create().await;
    let shown = preview(world, id, 80).await;
    wrenn_entities::api_key::Entity::delete_many().exec(&world.db).await.expect("revokes");
    assert_eq!(refused(admit(world, target(id, 80), &shown).await), Code::Unauthenticated);
}

async fn labels_are_replaced(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let set = "mutation($id: ID!, $labels: Labels!) {
        setCapsuleLabels(id: $id, labels: $labels) { capsule { labels state } } }";
    for labels in [json!({"a": "1", "b": "2"}), json!({"b": "3"}), json!({})] {
        let changed = world.ask(set, json!({"id": id, "labels": labels})).await;
        assert_eq!(changed["setCapsuleLabels"]["capsule"], json!({"labels": labels, "state": "RUNNING"}));
    }
    let error = world.refused(set, json!({"id": id, "labels": {"": "x"}})).await;
    assert_eq!(error.brief(), ("INVALID_INPUT", Some("labels")));
    let pausing = world.plant_held(CapsuleState::Pausing, None, None).await.to_string();
    assert_eq!(world.refused(set, json!({"id": pausing, "labels": {}})).await.code, "CONFLICT");
}

async fn hosts_are_dialled_apart_from_calls(world: &World) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let agent = world.host("one").await;
    let host = agent.host.to_string();
    let accepting = tokio::time::timeout(crate::world::PATIENCE, agent.http_connection());
    let (dialled, accepted) = tokio::join!(gateway::dial(&world.services, &host), accepting);
    let (mut ours, mut theirs) = (dialled.expect("connects"), accepted.expect("in time").expect("arrives"));
    ours.write_all(b"hello").await.expect("writes");
    let mut heard = [0; 5];
    tokio::time::timeout(crate::world::PATIENCE, theirs.read_exact(&mut heard))
        .await
        .expect("in time")
        .expect("reads");
    assert_eq!((&heard, agent.calls("create")), (b"hello", 0));
    let id = world.create().await.to_string();
    assert_eq!(agent.state_of(&id), Some(wrenn_proto::agent::v1::CapsuleState::Running));
    agent.kill();
    agent.killed().await;
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    while gateway::dial(&world.services, &host).await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the dead answer");
    }
    let lost = gateway::dial(&world.services, &host).await.expect_err("is gone");
    assert_eq!((lost.code(), lost.cause()), (Code::Unavailable, Some("HOST_AGENT_LOST")));
}
