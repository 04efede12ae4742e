//! Operations on a socket that is let in.

use serde_json::json;
use wrenn_api::ws::Limits;

use std::sync::atomic::Ordering;

use crate::{
    client::{Client, data},
    eventually,
    gate::TestServer,
};

#[tokio::test]
async fn queries_mutations_and_subscriptions_run_to_their_end() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    client.subscribe("q", "{ hello }").await;
    assert_eq!(data(&client.receive().await), &json!({ "hello": "world" }));
    assert_eq!(client.receive().await, json!({ "type": "complete", "id": "q" }));
    client.subscribe("m", "mutation { write(value: 7) }").await;
    assert_eq!(data(&client.receive().await), &json!({ "write": 7 }));
    assert_eq!(client.receive().await, json!({ "type": "complete", "id": "m" }));
    assert_eq!(server.probe.written.load(Ordering::SeqCst), 7);
    client.subscribe("s", "subscription { count(to: 1000) }").await;
    for number in 0..1000 {
        assert_eq!(data(&client.receive().await), &json!({ "count": number }));
    }
    assert_eq!(client.receive().await, json!({ "type": "complete", "id": "s" }));
}

#[tokio::test]
async fn a_refused_document_is_an_error_and_a_failed_field_is_not() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    for (id, document) in [("1", "{ nothing }"), ("2", "{"), ("3", "subscription { count }")] {
        client.subscribe(id, document).await;
        let refused = client.receive().await;
        assert_eq!((&refused["type"], &refused["id"]), (&json!("error"), &json!(id)), "{refused}");
        assert!(refused["payload"][0]["message"].is_string());
    }
    client.subscribe("4", "{ fails }").await;
    assert_eq!(client.receive().await["payload"]["errors"][0]["message"], "it fails");
    assert_eq!(client.receive().await["type"], "complete");
}

#[tokio::test]
async fn a_panic_ends_its_operation_alone() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    client.subscribe("1", "{ panics }").await;
    let error = client.receive().await;
    assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!("1")));
    assert_eq!(error["payload"][0]["extensions"]["code"], "INTERNAL");
    assert!(error["payload"][0]["extensions"]["requestId"].is_string());
    client.subscribe("2", "subscription { panics }").await;
    assert_eq!(data(&client.receive().await), &json!({ "panics": 0 }));
    assert_eq!(client.receive().await["type"], "error");
    client.subscribe("3", "{ hello }").await;
    assert_eq!(data(&client.receive().await), &json!({ "hello": "world" }));
}

#[tokio::test]
async fn an_id_in_use_is_4409() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    client.subscribe("1", "subscription { silence }").await;
    client.subscribe("1", "{ hello }").await;
    assert_eq!(client.closed().await, (4409, "Subscriber for 1 already exists".to_owned()));
    eventually("the first one is gone", || server.probe.alive() == 0).await;
}

/// However soon it is used: on threads of their own, operation, writer and reader of the socket are not in step.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_free_again_after_its_end_on_either_side() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    for _ in 0..500 {
        client.subscribe("1", "{ hello }").await;
        assert_eq!(client.receive().await["type"], "next");
        assert_eq!(client.receive().await["type"], "complete");
    }
    client.subscribe("1", "subscription { silence }").await;
    client.complete("1").await;
    client.subscribe("1", "{ hello }").await;
    assert_eq!(data(&client.receive().await), &json!({ "hello": "world" }));
}

#[tokio::test]
async fn one_operation_too_many_is_refused_alone() {
    let server = TestServer::start(Limits { max_operations: 2, ..Limits::default() });
    let mut client = Client::connect(server.address).await;
    client.subscribe("1", "subscription { silence }").await;
    client.subscribe("2", "subscription { silence }").await;
    client.subscribe("3", "{ hello }").await;
    let refused = client.receive().await;
    assert_eq!((&refused["type"], &refused["id"]), (&json!("error"), &json!("3")));
    assert_eq!(refused["payload"][0]["extensions"]["code"], "RESOURCE_EXHAUSTED");
    eventually("two run", || server.probe.alive() == 2).await;
    client.complete("1").await;
    client.subscribe("3", "{ hello }").await;
    assert_eq!(data(&client.receive().await), &json!({ "hello": "world" }));
}

#[tokio::test]
async fn complete_cancels_and_so_does_the_end_of_the_socket() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::connect(server.address).await;
    for id in ["1", "2", "3"] {
        client.subscribe(id, "subscription { silence }").await;
    }
    eventually("three run", || server.probe.alive() == 3).await;
    client.complete("2").await;
    eventually("one is cancelled", || server.probe.alive() == 2).await;
    client.complete("unknown").await;
    drop(client);
    eventually("all are gone", || server.probe.alive() == 0).await;

    let mut polite = Client::connect(server.address).await;
    polite.subscribe("1", "subscription { silence }").await;
    eventually("it runs", || server.probe.alive() == 1).await;
    polite.socket.close(None).await.unwrap();
    eventually("it is gone", || server.probe.alive() == 0).await;
}

#[tokio::test]
async fn pings_of_the_protocol_are_answered_with_their_payload() {
    let server = TestServer::start(Limits::default());
    let mut client = Client::open(server.address).await;
    client.say(json!({ "type": "ping", "payload": { "n": 1 } })).await;
    assert_eq!(client.receive().await, json!({ "type": "pong", "payload": { "n": 1 } }));
    client.say(json!({ "type": "ping" })).await;
    assert_eq!(client.receive().await, json!({ "type": "pong" }));
    client.say(json!({ "type": "pong" })).await;
    client.init(json!({ "apiKey": "good" })).await;
    assert_eq!(client.receive().await["type"], "connection_ack");
}
