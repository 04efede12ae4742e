//! What a capsule costs its host.

use tonic::Code;
use wrenn_proto::agent::v1 as agent;

use crate::support::calls::{capsule, create, new_id, only, sh, soon, until};
use crate::{Client, cause, ended, finish, site};

fn range(id: &str, range_sec: u32) -> agent::GetMetricsRequest {
    agent::GetMetricsRequest { capsule_ids: vec![id.to_owned()], range_sec }
}

async fn points(client: &mut Client, id: &str, range_sec: u32) -> Vec<agent::MetricPoint> {
    let said = only(client.get_metrics(range(id, range_sec)).await).await;
    assert_eq!(said.failure, None);
    said.points
}

#[tokio::test(flavor = "multi_thread")]
async fn load_is_measured_while_a_capsule_runs_and_kept_while_it_is_paused() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();
    client.start_process(sh(&id, "while :; do :; done")).await.unwrap();

    let mut live = client.watch_metrics(capsule(&id)).await.unwrap().into_inner();
    let mut busiest = 0.0_f64;
    for _ in 0..6 {
        let point = soon("a point", live.message()).await.unwrap().unwrap();
        assert!(point.memory_bytes > 10 << 20 && point.disk_bytes > 0, "{point:?}");
        busiest = busiest.max(point.cpu_percent);
    }
    assert!(busiest > 10.0, "a loop in the guest is work for the host: {busiest}");
    let known = points(&mut client, &id, 600).await;
    assert!(known.len() >= 6 && known.windows(2).all(|pair| pair[0].at_ns < pair[1].at_ns), "{known:?}");
    for coarser in [7200, 86_400] {
        let known = points(&mut client, &id, coarser).await;
        assert!(!known.is_empty(), "the open window counts");
    }
    for wrong in [0, 86_401] {
        let status = client.get_metrics(range(&id, wrong)).await.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }

    client.pause_capsule(capsule(&id)).await.unwrap();
    let end = ended(live).await;
    assert_eq!(cause(&end), Some("CAPSULE_PAUSED"));
    let paused = points(&mut client, &id, 600).await;
    assert!(paused.len() >= known.len());
    assert_eq!(
        client.watch_metrics(capsule(&id)).await.map(drop).unwrap_err().code(),
        Code::FailedPrecondition
    );
    agent.stop().await;

    let (agent, mut client) = site.start(&[]).await;
    let again = points(&mut client, &id, 600).await;
    assert_eq!(again, paused, "kept over the agent");
    client.resume_capsule(capsule(&id)).await.unwrap();
    until("it goes on where it was", async || {
        let now = points(&mut client, &id, 600).await;
        now.len() > paused.len() && now[..paused.len()] == paused[..]
    })
    .await;
    agent.stop().await;

    // An agent that comes back to a capsule that ran on has what the one before knew.
    let (agent, mut client) = site.start(&[]).await;
    let known = points(&mut client, &id, 600).await;
    assert!(known.len() > paused.len() && known[..paused.len()] == paused[..]);
    until("an adopted capsule is measured", async || points(&mut client, &id, 600).await.len() > known.len())
        .await;
    client.destroy_capsule(capsule(&id)).await.unwrap();
    let gone = only(client.get_metrics(range(&id, 600)).await).await.failure.expect("nothing is known");
    assert_eq!((Code::from_i32(gone.code), gone.cause.as_str()), (Code::FailedPrecondition, "DESTROYED"));
    finish(agent, site).await;
}
