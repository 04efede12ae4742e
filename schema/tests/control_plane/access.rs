//! Who may do what.

use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, Set};
use secrecy::SecretString;
use serde_json::json;
use wrenn_entities::{
    api_key,
    time::now,
    user::{self, UserStatus},
};
use wrenn_schema::{
    Code,
    access::{Caller, Credentials, authenticate},
};

use crate::{
    on_both_databases,
    world::{CREATE, Refused, World, next, next_data, refused},
};

on_both_databases!(
    fields_are_guarded,
    wrong_keys_are_refused,
    a_revoked_key_is_noticed,
    subscriptions_end_with_their_key,
    use_is_noted_once_a_minute,
    the_viewer_is_shown,
    nodes_are_found_by_their_ids,
    limits_are_said,
);

async fn fields_are_guarded(world: &World) {
    let agent = world.host("one").await;
    for query in
        ["{ viewer { team { id } } }", "{ capsules { totalCount } }", "{ node(id: \"cl-1\") { id } }"]
    {
        assert_eq!(refused(world.execute(None, query, json!({})).await).code, "UNAUTHENTICATED");
        assert_eq!(refused(world.execute(Some(&agent.token), query, json!({})).await).code, "FORBIDDEN");
    }
    let error = refused(world.execute(None, CREATE, json!({"input": {}})).await);
    assert_eq!(error.code, "UNAUTHENTICATED");
    let create = "mutation { createHost(input: {name: \"x\"}) { token } }";
    assert_eq!(world.refused(create, json!({})).await.code, "FORBIDDEN");
    let heartbeat =
        "mutation($specs: HostSpecsInput!) { hostHeartbeat(input: {specs: $specs}) { host { id } } }";
    let specs = json!({"specs": crate::agent::specs(1)});
    assert_eq!(world.refused(heartbeat, specs.clone()).await.code, "FORBIDDEN");
    assert_eq!(refused(world.execute(None, heartbeat, specs).await).code, "UNAUTHENTICATED");
}

async fn wrong_keys_are_refused(world: &World) {
    for wrong in ["", "wrn_", "wrn_00000000000000000000000000000000", "something else"] {
        let key = Credentials { api_key: Some(wrong.into()), bearer: None };
        let bearer = Credentials { api_key: None, bearer: Some(wrong.into()) };
        for credentials in [key, bearer] {
            let error = authenticate(&world.services, &credentials).await.expect_err(wrong);
            assert_eq!(error.code(), Code::Unauthenticated);
        }
    }
    let none = authenticate(&world.services, &Credentials::default()).await.expect("is nobody");
    assert!(matches!(none, Caller::Anonymous));
    let bearer = Credentials { api_key: None, bearer: Some(world.key.clone()) };
    assert!(
        matches!(authenticate(&world.services, &bearer).await, Ok(Caller::Key(key)) if key.team_id == world.team)
    );
}

async fn key_of(world: &World, secret: &SecretString) -> (Caller, api_key::Model) {
    let credentials = Credentials { api_key: Some(secret.clone()), bearer: None };
    let caller = authenticate(&world.services, &credentials).await.expect("is accepted");
    let Caller::Key(key) = &caller else { panic!("not a key: {caller:?}") };
    let row = api_key::Entity::find_by_id(key.id).one(&world.db).await.expect("reads").expect("is there");
    (caller, row)
}

async fn a_revoked_key_is_noticed(world: &World) {
    let (caller, row) = key_of(world, &world.key).await;
    caller.recheck(&world.services).await.expect("still good");
    let mut row = row.into_active_model();
    row.expires_at = Set(Some(now() - chrono::TimeDelta::seconds(1)));
    let row = row.update(&world.db).await.expect("expires");
    assert_eq!(caller.recheck(&world.services).await.expect_err("has expired").code(), Code::Unauthenticated);
    let credentials = Credentials { api_key: Some(world.key.clone()), bearer: None };
    let error = authenticate(&world.services, &credentials).await.expect_err("is not remembered");
    assert_eq!(error.code(), Code::Unauthenticated);
    api_key::Entity::delete_by_id(row.id).exec(&world.db).await.expect("revokes");
    assert_eq!(caller.recheck(&world.services).await.expect_err("is gone").code(), Code::Unauthenticated);
}

async fn subscriptions_end_with_their_key(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = "subscription($id: ID!) { capsule(id: $id) { state } }";
    let mut seen = Vec::new();
    for _ in 0..50 {
        let mut one = Box::pin(world.subscribe(query, json!({"id": id})).await);
        assert_eq!(next_data(&mut one).await["capsule"]["state"], "RUNNING");
        seen.push(one);
    }
    world.reads();
    let user = user::Entity::find().one(&world.db).await.expect("reads").expect("is there");
    let mut user = user.into_active_model();
    user.status = Set(UserStatus::Disabled);
    let user = user.update(&world.db).await.expect("is disabled");
    for one in &mut seen {
        let error = Refused::of(&next(one).await.expect("a last word").errors[0]);
        assert_eq!(error.code, "UNAUTHENTICATED");
        assert!(next(one).await.is_none(), "it was the last");
    }
    let looks = world.reads().into_iter().filter(|sql| sql.contains("\"api_keys\"")).count();
    assert!((1..=3).contains(&looks), "one look for all of them, not {looks}");

    // Who is let in again is not reminded of it.
    let mut user = user.into_active_model();
    user.status = Set(UserStatus::Active);
    user.update(&world.db).await.expect("is enabled");
    let mut again = Box::pin(world.subscribe(query, json!({"id": id})).await);
    assert_eq!(next_data(&mut again).await["capsule"]["state"], "RUNNING");
}

async fn use_is_noted_once_a_minute(world: &World) {
    key_of(world, &world.key).await;
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    let first = loop {
        if let Some(at) = key_of(world, &world.key).await.1.last_used_at {
            break at;
        }
        assert!(std::time::Instant::now() < deadline, "the use was not noted");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    // Another process, which remembers nothing.
    let another = world.another().await;
    let credentials = Credentials { api_key: Some(world.key.clone()), bearer: None };
    authenticate(&another, &credentials).await.expect("is accepted");
    another.shutdown().await;
    assert_eq!(key_of(world, &world.key).await.1.last_used_at, Some(first));
}

async fn the_viewer_is_shown(world: &World) {
    let seen =
        world.ask("{ viewer { user { name email } team { name } apiKey { name prefix } } }", json!({})).await;
    assert_eq!(seen["viewer"]["user"], json!({"name": "Ada", "email": "ada@example.org"}));
    assert_eq!(seen["viewer"]["team"]["name"], "First");
    assert_eq!(seen["viewer"]["apiKey"]["name"], "test");
    assert!(seen["viewer"]["apiKey"]["prefix"].as_str().expect("a prefix").starts_with("wrn_"));
}

async fn nodes_are_found_by_their_ids(world: &World) {
    let agent = world.host("one").await;
    let capsule = world.create().await.to_string();
    let (other, _) = world.other_team().await;
    let query = "query($id: ID!) { node(id: $id) { __typename id } }";
    let viewer = world.ask("{ viewer { user { id } team { id } apiKey { id } } }", json!({})).await;
    let id = |kind: &str| viewer["viewer"][kind]["id"].as_str().expect("an id").to_owned();
    for (id, kind) in [
        (capsule, "Capsule"),
        ("tpl-0000000000000000000000000".to_owned(), "Template"),
        (id("team"), "Team"),
        (id("user"), "User"),
        (id("apiKey"), "ApiKey"),
    ] {
        let found = world.ask(query, json!({"id": id})).await;
        assert_eq!(found["node"], json!({"__typename": kind, "id": id}));
    }
    for hidden in [other.to_string(), agent.host.to_string(), "user-0000000000000000000000000".to_owned()] {
        assert_eq!(world.refused(query, json!({"id": hidden})).await.code, "NOT_FOUND");
    }
    let host = world.execute(Some(&world.admin), query, json!({"id": agent.host.to_string()})).await;
    assert_eq!(host.data.into_json().expect("is JSON")["node"]["__typename"], "Host");
    assert_eq!(world.refused(query, json!({"id": "what"})).await.brief(), ("INVALID_INPUT", Some("id")));

    let by_name = world.ask("{ template(name: \"minimal\") { id team { name } kind } }", json!({})).await;
    assert_eq!(
        by_name["template"],
        json!({"id": "tpl-0000000000000000000000000", "team": {"name": "Platform"}, "kind": "IMAGE"})
    );
    let error = world.refused("{ template { id } }", json!({})).await;
    assert_eq!(error.brief(), ("INVALID_INPUT", Some("id")));
    let listed =
        world.ask("{ templates(filter: {search: \"INI\"}) { nodes { name } totalCount } }", json!({})).await;
    assert_eq!(listed["templates"], json!({"nodes": [{"name": "minimal"}], "totalCount": 1}));
}

async fn limits_are_said(world: &World) {
    let wide =
        (0..60).map(|n| format!("a{n}: capsules(first: 200) {{ nodes {{ id }} }} ")).collect::<String>();
    let error = world.refused(&format!("{{ {wide} }}"), json!({})).await;
    assert_eq!(error.code, "INVALID_INPUT");
    assert!(error.message.to_lowercase().contains("complex"), "{error:?}");
}
