//! Which host takes a capsule.

use serde_json::json;
use tonic::Status;
use wrenn_entities::capsule::CapsuleState;

use crate::{
    agent::arrived,
    on_both_databases,
    world::{CREATE, World},
};

on_both_databases!(
    the_emptier_host_takes_it,
    what_fits_nowhere_leaves_nothing,
    a_full_host_passes_it_on,
    hosts_are_not_promised_twice,
);

async fn the_emptier_host_takes_it(world: &World) {
    let small = world.host_with("small", 1024).await;
    let large = world.host_with("large", 4096).await;
    for _ in 0..3 {
        world.ask(CREATE, json!({"input": {"memoryMib": 512}})).await;
    }
    assert_eq!((small.calls("create"), large.calls("create")), (0, 3));
    for _ in 0..2 {
        world.ask(CREATE, json!({"input": {"memoryMib": 512}})).await;
    }
    assert!(small.calls("create") > 0, "the large one has less left by then");
}

async fn what_fits_nowhere_leaves_nothing(world: &World) {
    let error = world.refused(CREATE, json!({"input": {}})).await;
    assert_eq!((error.code.as_str(), error.message.as_str()), ("UNAVAILABLE", "no host is online"));
    let agent = world.host_with("small", 1024).await;
    let error = world.refused(CREATE, json!({"input": {"memoryMib": 2048}})).await;
    assert_eq!(error.code, "RESOURCE_EXHAUSTED");
    assert!(error.message.contains("memory"), "{error:?}");
    assert!(world.rows().await.is_empty());
    assert_eq!(agent.calls("create"), 0);
}

async fn a_full_host_passes_it_on(world: &World) {
    let first = world.host_with("first", 8192).await;
    let second = world.host_with("second", 4096).await;
    first.refuse_next("create", Status::resource_exhausted("no slot is free"));
    let id = world.create().await;
    assert_eq!((first.calls("create"), second.calls("create")), (1, 1));
    assert_eq!(world.row(id).await.host_id, Some(second.host));

    // A host that is gone is passed over as well.
    first.kill();
    let id = world.create().await;
    assert_eq!(world.row(id).await.host_id, Some(second.host));
    second.refuse_next("create", Status::resource_exhausted("no slot is free"));
    let error = world.refused(CREATE, json!({"input": {}})).await;
    assert_eq!(error.code, "RESOURCE_EXHAUSTED", "what the last one that was tried said: {error:?}");
    assert_eq!(world.rows().await.len(), 2);
}

async fn hosts_are_not_promised_twice(world: &World) {
    let agent = world.host_with("small", 1024).await;
    let gate = agent.gate("create");
    let input = || json!({"input": {"memoryMib": 600}});
    let both = async {
        tokio::join!(
            world.execute(Some(&world.key), CREATE, input()),
            world.execute(Some(&world.key), CREATE, input()),
        )
    };
    let opened = async {
        arrived(&agent, "create", 1).await;
        gate.add_permits(2);
    };
    let ((one, other), ()) = tokio::join!(both, opened);
    assert_eq!(one.errors.len() + other.errors.len(), 1, "only one fits: {one:?} {other:?}");
    let running = world.rows().await.into_iter().filter(|row| row.state == CapsuleState::Running).count();
    assert_eq!((running, world.rows().await.len()), (1, 1));
}
