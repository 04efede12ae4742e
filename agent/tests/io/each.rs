//! Questions about several capsules in one call.

use tonic::{Code, Streaming};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;
use wrenn_proto::{GUEST_WAITED, MOST_CAPSULES};

use crate::http::Proxy;
use crate::server::{listening, serve};
use crate::support::calls::{capsule, capsules, create, new_id, run, sh, soon, until};
use crate::{finish, site};

/// All that is said, and how long guests were waited for, if that is said at the end.
async fn all<T>(mut said: Streaming<T>) -> (Vec<T>, Option<u64>) {
    let mut messages = Vec::new();
    while let Some(message) = soon("an answer", said.message()).await.unwrap() {
        messages.push(message);
    }
    let end = said.trailers().await.unwrap().unwrap_or_default();
    (messages, end.get(GUEST_WAITED).map(|waited| waited.to_str().unwrap().parse().unwrap()))
}

/// Code and cause of a failure.
fn brief(failure: Option<&agent::Failure>) -> Option<(Code, &str)> {
    failure.map(|failure| (Code::from_i32(failure.code), failure.cause.as_str()))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_capsules_is_answered_for_on_its_own() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let proxy = Proxy::of(&site, &agent);
    let [web, shell, asleep, unknown] = [new_id(), new_id(), new_id(), new_id()];
    for id in [&web, &shell, &asleep] {
        client.create_capsule(create(id)).await.unwrap();
    }
    serve(&mut client, &web, 3000).await;
    listening(&proxy, &web, 3000).await;
    client.start_process(sh(&shell, "sleep 1000")).await.unwrap();
    // Two looks at a capsule make its first point.
    until("each was measured", async || {
        let request = agent::GetMetricsRequest {
            capsule_ids: capsules(&[&web, &shell, &asleep]).capsule_ids,
            range_sec: 600,
        };
        let (measured, _) = all(client.get_metrics(request).await.unwrap().into_inner()).await;
        measured.len() == 3 && measured.iter().all(|of| !of.points.is_empty())
    })
    .await;
    client.pause_capsule(capsule(&asleep)).await.unwrap();
    let asked = [web.as_str(), &shell, &asleep, &unknown, "cl-nonsense"];
    let failed = |id: &str| match id {
        id if id == asleep => Some(Code::FailedPrecondition),
        id if id == unknown => Some(Code::NotFound),
        "cl-nonsense" => Some(Code::InvalidArgument),
        _ => None,
    };

    let (ports, waited) = all(client.list_ports(capsules(&asked)).await.unwrap().into_inner()).await;
    assert_eq!(ports.len(), asked.len());
    assert!(waited.is_some_and(|waited| waited > 0), "two guests were asked: {waited:?}");
    for of in &ports {
        assert_eq!(brief(of.failure.as_ref()).map(|(code, _)| code), failed(&of.capsule_id), "{of:?}");
        let numbers: Vec<_> = of.ports.iter().map(|port| port.number).collect();
        assert_eq!(numbers, if of.capsule_id == web { vec![3000] } else { vec![] });
    }
    let (lists, waited) = all(client.list_processes(capsules(&asked)).await.unwrap().into_inner()).await;
    assert!(lists.len() == asked.len() && waited.is_some(), "{lists:?}");
    for of in &lists {
        assert_eq!(brief(of.failure.as_ref()).map(|(code, _)| code), failed(&of.capsule_id), "{of:?}");
        assert_eq!(of.processes.len(), usize::from(of.failure.is_none()), "{of:?}");
    }

    // Of one that is paused it is known what it used; and no guest is asked.
    let request = agent::GetMetricsRequest { capsule_ids: capsules(&asked).capsule_ids, range_sec: 600 };
    let (points, waited) = all(client.get_metrics(request).await.unwrap().into_inner()).await;
    assert_eq!((points.len(), waited), (asked.len(), None));
    for of in &points {
        let known = of.capsule_id == asleep || failed(&of.capsule_id).is_none();
        assert_eq!((of.failure.is_none(), of.points.is_empty()), (known, !known), "{of:?}");
    }

    // A death is told as it would be of one alone.
    client.destroy_capsule(capsule(&asleep)).await.unwrap();
    let (gone, _) = all(client.list_ports(capsules(&[&asleep])).await.unwrap().into_inner()).await;
    assert_eq!(brief(gone[0].failure.as_ref()), Some((Code::FailedPrecondition, "DESTROYED")));
    let many = vec![web.as_str(); MOST_CAPSULES + 1];
    let refused = client.list_ports(capsules(&many)).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for id in [&web, &shell] {
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    finish(agent, site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_says_how_long_its_guest_took() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();

    // Headers for what is refused, trailers for an answer, and for a stream once it has ended.
    let stat = |path: &str| {
        let file = Some(envd::StatRequest { path: path.to_owned(), ..Default::default() });
        agent::StatFileRequest { capsule_id: id.clone(), file }
    };
    let found = client.stat_file(stat("/etc")).await.unwrap();
    assert!(found.metadata().contains_key(GUEST_WAITED), "{found:?}");
    let refused = client.stat_file(stat("/nowhere")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.metadata().contains_key(GUEST_WAITED), "{refused:?}");
    let started = client.start_process(sh(&id, "true")).await.unwrap();
    assert!(started.metadata().contains_key(GUEST_WAITED), "also where another task asks: {started:?}");
    let (_, waited) = all(client.exec(sh(&id, "sleep 1")).await.unwrap().into_inner()).await;
    assert!(waited.is_some_and(|waited| waited >= 1_000_000), "{waited:?}");
    let alone = client.get_capsule(capsule(&id)).await.unwrap();
    assert!(!alone.metadata().contains_key(GUEST_WAITED), "{alone:?}");

    let (output, _) = run(&mut client, &id, "echo still here").await;
    assert_eq!(output, "still here\n");
    client.destroy_capsule(capsule(&id)).await.unwrap();
    finish(agent, site).await;
}
