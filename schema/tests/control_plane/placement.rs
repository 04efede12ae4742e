//! Which host takes a capsule.

use serde_json::json;
use tonic::Status;
use wrenn_entities::capsule::CapsuleState;

use crate::{
    agent::arrived,
    on_both_databases,
    world::{CREATE, World, id_of},
};

on_both_databases!(
    the_emptier_host_takes_it,
    what_fits_nowhere_leaves_nothing,
    a_full_host_passes_it_on,
    hosts_without_the_image_are_passed_over,
    hosts_are_not_promised_twice,
    what_goes_on_is_on_the_books_again,
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

async fn what_goes_on_is_on_the_books_again(world: &World) {
    const PAUSE: &str = "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { state } } }";
    const RESUME: &str = "mutation($id: ID!) { resumeCapsule(id: $id) { capsule { state } } }";
    let agent = world.host_with("small", 1024).await;
    let input = json!({"input": {"memoryMib": 768}});
    let first = id_of(&world.ask(CREATE, input.clone()).await["createCapsule"]["capsule"]);
    world.ask(PAUSE, json!({"id": first.to_string()})).await;
    let second = id_of(&world.ask(CREATE, input).await["createCapsule"]["capsule"]);

    let error = world.refused(RESUME, json!({"id": first.to_string()})).await;
    assert_eq!(error.code, "RESOURCE_EXHAUSTED");
    assert!(error.message.contains("memory"), "{error:?}");
    assert_eq!(world.row(first).await.state, CapsuleState::Paused);
    assert_eq!(agent.calls("resume"), 0);

    world.ask(PAUSE, json!({"id": second.to_string()})).await;
    world.ask(RESUME, json!({"id": first.to_string()})).await;
    assert_eq!(world.row(first).await.state, CapsuleState::Running);
}

async fn hosts_without_the_image_are_passed_over(world: &World) {
    let missing = || {
        let mut status = Status::not_found("this host has no image of it");
        status.metadata_mut().insert(wrenn_proto::FIELD, "template".parse().expect("a value"));
        status
            .metadata_mut()
            .insert(wrenn_proto::CAUSE, wrenn_proto::IMAGE_MISSING.parse().expect("a value"));
        status
    };
    let first = world.host_with("first", 8192).await;
    let second = world.host_with("second", 4096).await;
    first.refuse_next("create", missing());
    let made = world.ask(CREATE, json!({"input": {"template": "python"}})).await;
    let id = id_of(&made["createCapsule"]["capsule"]);
    assert_eq!(world.row(id).await.host_id, Some(second.host));
    let asked = second.created().remove(0);
    assert_eq!(asked.template_id, "tpl-0000000000000000000000001");
    assert_eq!((asked.memory_mib, asked.disk_mib, asked.from_snapshot), (512, 2048, false));

    // Nowhere: what to do is said, and nothing is left, so that the same request can be made again.
    first.refuse_next("create", missing());
    second.refuse_next("create", missing());
    let input = json!({"input": {"template": "code-interpreter", "idempotencyKey": "again"}});
    let error = world.refused(CREATE, input.clone()).await;
    assert_eq!(error.brief(), ("FAILED_PRECONDITION", Some("template")));
    assert!(error.message.contains("`wrenn-rootfs build code-interpreter`"), "{error:?}");
    assert_eq!(world.rows().await.len(), 1);
    world.ask(CREATE, input).await;

    // The one that has it was full.
    first.refuse_next("create", Status::resource_exhausted("no slot is free"));
    second.refuse_next("create", missing());
    let error = world.refused(CREATE, json!({"input": {"template": "python"}})).await;
    assert_eq!((error.code.as_str(), error.message.as_str()), ("RESOURCE_EXHAUSTED", "no slot is free"));
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
