//! What these tests ask of an agent.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use wrenn_agent::ids::{CapsuleId, TeamId, TemplateId};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::agent_client::AgentClient;
use wrenn_proto::envd::v1 as envd;
use wrenn_proto::envd::v1::process_event::Event;

pub fn new_id() -> String {
    CapsuleId::from_u128(uuid::Uuid::now_v7().as_u128()).to_string()
}

pub fn create(id: &str) -> agent::CreateCapsuleRequest {
    agent::CreateCapsuleRequest {
        capsule_id: id.to_owned(),
        team_id: TeamId::from_u128(7).to_string(),
        template_id: TemplateId::from_u128(0).to_string(),
        template_team_id: TeamId::from_u128(0).to_string(),
        vcpus: 1,
        memory_mib: 256,
        disk_mib: 1024,
        env: vec![envd::EnvVar { name: "GREETING".into(), value: "hello".into() }],
        ..Default::default()
    }
}

pub fn capsule(id: &str) -> agent::CapsuleRef {
    agent::CapsuleRef { capsule_id: id.to_owned() }
}

pub fn capsules(ids: &[&str]) -> agent::CapsuleRefs {
    agent::CapsuleRefs { capsule_ids: ids.iter().copied().map(str::to_owned).collect() }
}

/// For whatever a guest under emulation does on a busy machine: only what fails takes so long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What comes in time.
pub async fn soon<T>(what: &str, coming: impl Future<Output = T>) -> T {
    let come = tokio::time::timeout(PATIENCE, coming).await;
    come.unwrap_or_else(|_| panic!("not within {} s: {what}", PATIENCE.as_secs()))
}

/// What is said of the only capsule that was asked about.
pub async fn only<T>(said: Result<Response<Streaming<T>>, Status>) -> T {
    let mut said = said.unwrap().into_inner();
    let first = soon("an answer", said.message()).await.unwrap().expect("an answer");
    assert!(soon("the end", said.message()).await.unwrap().is_none(), "one answer is wanted");
    first
}

pub fn sh(id: &str, line: &str) -> agent::StartProcessRequest {
    let argv = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
    let process = envd::StartRequest { argv, close_stdin: true, ..Default::default() };
    agent::StartProcessRequest { capsule_id: id.to_owned(), process: Some(process), keep_awake: false }
}

/// What a command printed and how it ended.
pub async fn run(client: &mut AgentClient<Channel>, id: &str, line: &str) -> (String, envd::ProcessExited) {
    collect(client.exec(sh(id, line)).await.unwrap().into_inner()).await
}

pub async fn collect(mut events: Streaming<envd::ProcessEvent>) -> (String, envd::ProcessExited) {
    let mut output = Vec::new();
    while let Some(event) = soon("an event of a process", events.message()).await.unwrap() {
        match event.event {
            Some(Event::Output(chunk)) => output.extend_from_slice(&chunk.data),
            Some(Event::Exited(exited)) => return (String::from_utf8(output).unwrap(), exited),
            _ => {}
        }
    }
    panic!("the stream ended without `exited`");
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
