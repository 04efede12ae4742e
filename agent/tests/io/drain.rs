//! A host that is to be free of capsules.

use tonic::Code;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;

use crate::support::calls::{capsule, create, new_id};
use crate::{cause, finish, site, state};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_drains_pauses_all_and_takes_nothing_until_it_is_started_again() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let ids: Vec<String> = (0..3).map(|_| new_id()).collect();
    for id in &ids {
        client.create_capsule(create(id)).await.unwrap();
    }
    client.pause_capsule(capsule(&ids[0])).await.unwrap();
    let drained = client.drain(agent::DrainRequest {}).await.unwrap().into_inner();
    assert_eq!(drained.paused, 2, "one was paused already");
    assert!(site.vmms().is_empty());
    assert_eq!(client.drain(agent::DrainRequest {}).await.unwrap().into_inner().paused, 0);
    for id in &ids {
        assert_eq!(state(&mut client, id).await, CapsuleState::Paused);
    }
    let refused = client.create_capsule(create(&new_id())).await.unwrap_err();
    assert_eq!((refused.code(), cause(&refused)), (Code::Unavailable, Some("HOST_DRAINING")));
    let refused = client.resume_capsule(capsule(&ids[0])).await.unwrap_err();
    assert_eq!((refused.code(), cause(&refused)), (Code::Unavailable, Some("HOST_DRAINING")));
    assert_eq!(client.info(agent::InfoRequest {}).await.unwrap().into_inner().capsules_running, 0);
    agent.stop().await;

    let (agent, mut client) = site.start(&[]).await;
    client.resume_capsule(capsule(&ids[0])).await.unwrap();
    for id in &ids {
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    finish(agent, site).await;
}
