//! The jobs that keep the database true to the hosts.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, Set};
use serde_json::json;
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::CapsuleState,
    host::{self, HostStatus},
    id::TypedId,
    time::now,
};
use wrenn_proto::agent::v1::CapsuleState as OnHost;
use wrenn_schema::jobs::Supervisor;

use crate::{
    agent::{PlayedAgent, arrived},
    on_both_databases,
    world::{PATIENCE, World},
};

on_both_databases!(
    what_was_cut_off_is_settled_by_the_host,
    what_is_held_is_left_alone,
    a_killed_control_plane_leaves_no_row_behind,
    what_happens_on_a_host_is_learned,
    what_nobody_knows_is_removed,
    a_host_that_falls_silent_comes_back,
    jobs_show_how_they_fare,
);

async fn what_was_cut_off_is_settled_by_the_host(world: &World) {
    let agent = world.host("one").await;
    let host = Some(agent.host);
    let mut expected = Vec::new();
    for (row, on_host, settled) in [
        (CapsuleState::Starting, Some(OnHost::Running), CapsuleState::Running),
        (CapsuleState::Starting, None, CapsuleState::Error),
        (CapsuleState::Pausing, Some(OnHost::Paused), CapsuleState::Paused),
        (CapsuleState::Pausing, Some(OnHost::Running), CapsuleState::Running),
        (CapsuleState::Pausing, None, CapsuleState::Stopped),
        (CapsuleState::Resuming, Some(OnHost::Running), CapsuleState::Running),
        (CapsuleState::Resuming, Some(OnHost::Paused), CapsuleState::Paused),
        (CapsuleState::Resuming, Some(OnHost::Error), CapsuleState::Error),
        (CapsuleState::Stopping, Some(OnHost::Running), CapsuleState::Stopped),
        (CapsuleState::Stopping, None, CapsuleState::Stopped),
    ] {
        let id = world.plant(row, host).await;
        if let Some(on_host) = on_host {
            agent.put(id, on_host);
        }
        expected.push((id, settled));
    }
    expected.push((world.plant(CapsuleState::Pending, None).await, CapsuleState::Error));
    let supervisor = Supervisor::start(&world.services);
    for (id, settled) in expected {
        let row = world.until(id, settled).await;
        assert!(row.operation_until.is_none());
        assert!(settled != CapsuleState::Error || row.cause_code.is_some(), "{row:?}");
    }
    supervisor.stop().await;
    assert!(agent.calls("destroy") >= 1, "what was to be destroyed is");
}

async fn rounds(supervisor: &Supervisor, name: &str) -> u64 {
    let status = supervisor.status();
    status.iter().find(|status| status.name == name).expect("there is such a job").runs
}

/// Waits until the job has begun and ended a round after now.
async fn a_round_of(supervisor: &Supervisor, name: &str) {
    let before = rounds(supervisor, name).await;
    let deadline = Instant::now() + PATIENCE;
    // The round that may be under way at the moment began too early to count.
    while rounds(supervisor, name).await < before + 2 {
        assert!(Instant::now() < deadline, "{name} does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn what_is_held_is_left_alone(world: &World) {
    let agent = world.host("one").await;
    let held = now() + TimeDelta::minutes(5);
    let starting = world.plant_held(CapsuleState::Starting, Some(agent.host), Some(held)).await;
    let pausing = world.plant_held(CapsuleState::Pausing, Some(agent.host), Some(held)).await;
    agent.put(pausing, OnHost::Paused);
    let supervisor = Supervisor::start(&world.services);
    a_round_of(&supervisor, "reconciler").await;
    supervisor.stop().await;
    assert_eq!(world.row(starting).await.state, CapsuleState::Starting);
    assert_eq!(world.row(pausing).await.state, CapsuleState::Pausing);
    assert_eq!(agent.calls("destroy"), 0);
}

async fn a_killed_control_plane_leaves_no_row_behind(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    // The process that pauses is gone in the middle: nobody renews its hold, the host finishes.
    let mut row = world.row(id).await.into_active_model();
    row.state = Set(CapsuleState::Pausing);
    row.generation = Set(7);
    row.operation_until = Set(Some(now() + TimeDelta::seconds(2)));
    row.update(&world.db).await.expect("writes");
    agent.put(id, OnHost::Paused);
    let another = world.another().await;
    let supervisor = Supervisor::start(&another);
    world.until(id, CapsuleState::Paused).await;
    supervisor.stop().await;
    another.shutdown().await;
}

async fn what_happens_on_a_host_is_learned(world: &World) {
    let agent = world.host("one").await;
    let (died, idle, broken) = (world.create().await, world.create().await, world.create().await);
    let supervisor = Supervisor::start(&world.services);
    arrived(&agent, "watch", 1).await;
    agent.happen(died, OnHost::Stopped, Some(("VMM_DIED", "killed by signal 9")));
    let row = world.until(died, CapsuleState::Stopped).await;
    assert_eq!(row.cause_code.as_deref(), Some("VMM_DIED"));
    agent.happen(idle, OnHost::Paused, Some(("IDLE", "idle for 5 s")));
    let row = world.until(idle, CapsuleState::Paused).await;
    assert_eq!(row.cause_code.as_deref(), Some("IDLE"));
    agent.happen(broken, OnHost::Error, Some(("DISK", "the disk cannot be read")));
    let row = world.until(broken, CapsuleState::Error).await;
    assert_eq!(row.cause_message.as_deref(), Some("the disk cannot be read"));

    let resumed = world
        .ask(
            "mutation($id: ID!) { resumeCapsule(id: $id) { capsule { state cause { code } } } }",
            json!({"id": idle.to_string()}),
        )
        .await;
    assert_eq!(resumed["resumeCapsule"]["capsule"], json!({"state": "RUNNING", "cause": null}));
    agent.forget(idle);
    let row = world.until(idle, CapsuleState::Stopped).await;
    assert_eq!(row.cause_code.as_deref(), Some("LOST_BY_HOST"));
    supervisor.stop().await;
}

async fn until_gone(agent: &PlayedAgent, id: CapsuleId) {
    let deadline = Instant::now() + PATIENCE;
    while agent.capsules().iter().any(|capsule| capsule.id == id.to_string()) {
        assert!(Instant::now() < deadline, "{id} is still on the host");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn what_nobody_knows_is_removed(world: &World) {
    let agent = world.host("one").await;
    let kept = world.create().await;
    let unknown = CapsuleId::generate();
    agent.put(unknown, OnHost::Running);
    let stopped = world.plant_held(CapsuleState::Stopped, Some(agent.host), None).await;
    agent.put(stopped, OnHost::Paused);
    let elsewhere = world.plant_held(CapsuleState::Running, None, None).await;
    agent.put(elsewhere, OnHost::Running);
    let supervisor = Supervisor::start(&world.services);
    for id in [unknown, stopped, elsewhere] {
        until_gone(&agent, id).await;
    }
    supervisor.stop().await;
    assert_eq!(agent.capsules().len(), 1);
    assert_eq!(world.row(kept).await.state, CapsuleState::Running);
    assert_eq!(world.row(stopped).await.state, CapsuleState::Stopped);
}

async fn silence(world: &World, host: HostId) {
    let row = host::Entity::find_by_id(host).one(&world.db).await.expect("reads").expect("is there");
    let mut row = row.into_active_model();
    row.last_heartbeat_at = Set(Some(now() - TimeDelta::seconds(91)));
    row.update(&world.db).await.expect("writes");
}

async fn a_host_that_falls_silent_comes_back(world: &World) {
    let agent = world.host("one").await;
    let running = world.create().await;
    let paused = world.plant_held(CapsuleState::Paused, Some(agent.host), None).await;
    agent.put(paused, OnHost::Paused);
    let starting = world.plant(CapsuleState::Starting, Some(agent.host)).await;
    silence(world, agent.host).await;
    let supervisor = Supervisor::start(&world.services);
    let row = world.until(running, CapsuleState::Missing).await;
    assert_eq!(row.cause_code.as_deref(), Some("HOST_UNREACHABLE"));
    world.until(starting, CapsuleState::Error).await;
    assert_eq!(world.row(paused).await.state, CapsuleState::Paused);
    let row = host::Entity::find_by_id(agent.host).one(&world.db).await.expect("reads").expect("is there");
    assert_eq!(row.status, HostStatus::Unreachable);

    let query = "mutation($specs: HostSpecsInput!) { hostHeartbeat(input: {specs: $specs}) { host { id } } }";
    let beat = world.execute(Some(&agent.token), query, json!({"specs": crate::agent::specs(8192)})).await;
    assert!(beat.errors.is_empty(), "{beat:?}");
    let row = world.until(running, CapsuleState::Running).await;
    assert_eq!(row.cause_code, None);
    supervisor.stop().await;
}

async fn jobs_show_how_they_fare(world: &World) {
    let supervisor = Supervisor::start(&world.services);
    a_round_of(&supervisor, "host-watch").await;
    let names: Vec<_> = supervisor.status().iter().map(|status| status.name).collect();
    assert_eq!(names, ["client-certificate", "host-monitor", "host-watch", "reconciler", "template-files"]);
    let shown = serde_json::to_value(supervisor.status()).expect("is JSON");
    assert_eq!(shown[2]["failures"], 0);
    assert_eq!(shown[2]["last_error"], json!(null));
    supervisor.stop().await;
}
