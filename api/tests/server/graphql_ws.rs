//! The client that most programs use, as it comes from npm.

use std::{path::Path, process::Stdio};

use tokio::{process::Command, time::timeout};

use crate::{
    agent::PlayedAgent,
    harness::{DEADLINE, Running},
};

/// What the played guest writes for the line `flood`.
const FLOOD: &str = "20971520";

#[tokio::test(flavor = "multi_thread")]
async fn the_client_from_npm_is_served() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/graphql-ws");
    assert!(
        package.join("node_modules").is_dir(),
        "NOT TESTED WITH graphql-ws: run `npm ci` in {} (`make test` does)",
        package.display()
    );
    let running = Running::start("").await;
    let _agent = PlayedAgent::register(&running, "one", 8192).await;
    let create = "mutation { createCapsule(input: {}) { capsule { id state } } }";
    let made: serde_json::Value = running
        .query(create)
        .header("x-api-key", &running.api_key)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let capsule = &made["data"]["createCapsule"]["capsule"];
    assert_eq!(capsule["state"], "RUNNING", "{made}");
    let client = Command::new("node")
        .args(["--test", "--test-concurrency=1", "--test-reporter=spec", "client.test.mjs"])
        .current_dir(&package)
        .env("WRENN_URL", running.url(""))
        .env("WRENN_API_KEY", &running.api_key)
        .env("WRENN_CAPSULE", capsule["id"].as_str().unwrap())
        .env("WRENN_FLOOD", "flood")
        .env("WRENN_FLOOD_BYTES", FLOOD)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(4 * DEADLINE, client).await.expect("it does not end").expect("node is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    running.server.stop().await;
}
