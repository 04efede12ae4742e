//! The output of programs that ran to their end, as one answer.

use futures_util::future::try_join_all;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::{
    agent::PlayedAgent,
    harness::{MEMORY, Running},
    socket::{hear_json, open, say},
};

/// Its output is larger than an answer may be.
const FLOOD: &str =
    "mutation($id: ID!) { exec(input: { capsuleId: $id, argv: [\"flood\"] }) { stdout truncated } }";

struct Hosted {
    running: Running,
    capsule: String,
    _agent: PlayedAgent,
}

impl Hosted {
    async fn start() -> Self {
        let running = Running::start("").await;
        let agent = PlayedAgent::register(&running, "one", 8192).await;
        let create = running.query("mutation { createCapsule(input: {}) { capsule { id } } }");
        let made = answer(create.header("x-api-key", &running.api_key)).await;
        let capsule = made["data"]["createCapsule"]["capsule"]["id"].as_str().expect("an id").to_owned();
        Self { running, capsule, _agent: agent }
    }

    fn flood(&self) -> RequestBuilder {
        let body = json!({ "query": FLOOD, "variables": { "id": self.capsule } });
        self.running.post().header("x-api-key", &self.running.api_key).json(&body)
    }
}

async fn answer(request: RequestBuilder) -> Value {
    request.send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_count_until_they_are_sent() {
    let hosted = Hosted::start().await;
    let _alone = MEMORY.lock().await;
    // As much as a team may have.
    let mut unread = try_join_all((0..4).map(|_| hosted.flood().send())).await.unwrap();
    let length = |answer: &Value| answer["data"]["exec"]["stdout"].as_str().map(str::len);
    let cut = answer(hosted.flood()).await;
    assert!(length(&cut).is_some_and(|bytes| (64 << 10..1 << 20).contains(&bytes)), "{:?}", length(&cut));
    assert_eq!(cut["data"]["exec"]["truncated"], true);
    let read: Value = unread.pop().unwrap().json().await.unwrap();
    assert_eq!(length(&read), Some(16 << 20));
    let whole = answer(hosted.flood()).await;
    assert_eq!(length(&whole), Some(16 << 20));
    drop(unread);
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_socket_less_is_kept() {
    let hosted = Hosted::start().await;
    let mut socket = open(&hosted.running, None).await.unwrap();
    let init = json!({ "type": "connection_init", "payload": { "apiKey": hosted.running.api_key } });
    say(&mut socket, init).await;
    assert_eq!(hear_json(&mut socket).await["type"], "connection_ack");
    let payload = json!({ "query": FLOOD, "variables": { "id": hosted.capsule } });
    say(&mut socket, json!({ "type": "subscribe", "id": "1", "payload": payload })).await;
    let exec = hear_json(&mut socket).await["payload"]["data"]["exec"].take();
    assert_eq!((exec["stdout"].as_str().unwrap().len(), &exec["truncated"]), (1 << 20, &json!(true)));
    drop(socket);
    hosted.running.server.stop().await;
}
