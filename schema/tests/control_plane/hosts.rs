//! How hosts come to be and stay known.

use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, Set};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use wrenn_entities::{
    host::{self, HostStatus},
    host_credential,
    time::now,
};
use wrenn_schema::{
    Code,
    access::{Credentials, authenticate},
};

use crate::{
    agent::{REGISTER, csr, registration_token, specs},
    on_both_databases,
    world::{World, refused},
};

on_both_databases!(
    a_registration_token_works_once,
    a_host_that_never_came_gets_another_token,
    refreshing_locks_nobody_out,
    a_heartbeat_brings_a_host_back,
);

const REFRESH: &str = "mutation($input: RefreshHostCredentialsInput!) {
    refreshHostCredentials(input: $input) { hostId certificatePem caPem token tokenExpiresAt refreshToken }
}";

async fn a_registration_token_works_once(world: &World) {
    let token = registration_token(world, "one").await;
    let input = |token: &str, csr: &str, address: &str| json!({"input": {"token": token, "csrPem": csr, "address": address, "specs": specs(1024)}});
    let (_, csr) = csr();
    for (variables, code, field) in [
        (input("wrnreg_wrong", &csr, "127.0.0.1:1"), "UNAUTHENTICATED", None),
        (input(&token, "nonsense", "127.0.0.1:1"), "INVALID_INPUT", Some("csrPem")),
        (input(&token, &csr, "localhost:1"), "INVALID_INPUT", Some("address")),
        (input(&token, &csr, "0.0.0.0:1"), "INVALID_INPUT", Some("address")),
    ] {
        let error = refused(world.execute(None, REGISTER, variables).await);
        assert_eq!(error.brief(), (code, field));
    }
    let done = world.execute(None, REGISTER, input(&token, &csr, "127.0.0.1:1")).await;
    assert!(done.errors.is_empty(), "none of the failures used the token up: {done:?}");
    let done = done.data.into_json().expect("is JSON");
    assert!(done["registerHost"]["certificatePem"].as_str().expect("a PEM").contains("BEGIN CERTIFICATE"));
    let again = refused(world.execute(None, REGISTER, input(&token, &csr, "127.0.0.1:1")).await);
    assert_eq!(again.code, "UNAUTHENTICATED");

    let taken = refused(
        world
            .execute(
                Some(&world.admin),
                "mutation { createHost(input: {name: \"one\"}) { token } }",
                json!({}),
            )
            .await,
    );
    assert_eq!(taken.brief(), ("CONFLICT", Some("name")));
}

async fn a_host_that_never_came_gets_another_token(world: &World) {
    let first = registration_token(world, "one").await;
    let second = registration_token(world, "one").await;
    assert_eq!(host::Entity::find().all(&world.db).await.expect("reads").len(), 1);
    let (_, csr) = csr();
    let input = |token: &str| json!({"input": {"token": token, "csrPem": csr, "address": "127.0.0.1:1", "specs": specs(1024)}});
    assert_eq!(refused(world.execute(None, REGISTER, input(&first)).await).code, "UNAUTHENTICATED");

    let row = host_credential::Entity::find().one(&world.db).await.expect("reads").expect("is there");
    let mut row = row.into_active_model();
    row.expires_at = Set(now() - chrono::TimeDelta::seconds(1));
    row.update(&world.db).await.expect("expires");
    assert_eq!(refused(world.execute(None, REGISTER, input(&second)).await).code, "UNAUTHENTICATED");
}

async fn accepted(world: &World, token: &SecretString) -> bool {
    let credentials = Credentials { api_key: None, bearer: Some(token.clone()) };
    match authenticate(&world.services, &credentials).await {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.code(), Code::Unauthenticated);
            false
        }
    }
}

async fn refreshing_locks_nobody_out(world: &World) {
    let agent = world.host("one").await;
    let refresh = async |token: &SecretString| {
        let (_, csr) = csr();
        let input = json!({"input": {"refreshToken": token.expose_secret(), "csrPem": csr}});
        let answer = world.execute(None, REFRESH, input).await;
        if !answer.errors.is_empty() {
            assert_eq!(refused(answer).code, "UNAUTHENTICATED");
            return None;
        }
        let answer = answer.data.into_json().expect("is JSON");
        let text = |name: &str| answer["refreshHostCredentials"][name].as_str().expect(name).to_owned();
        Some((SecretString::from(text("token")), SecretString::from(text("refreshToken"))))
    };
    assert!(accepted(world, &agent.token).await);
    // The answer to the first refresh is lost on the way: the old ones still work.
    let lost = refresh(&agent.refresh_token).await.expect("refreshes");
    assert!(accepted(world, &agent.token).await);
    let (token, refresh_token) = refresh(&agent.refresh_token).await.expect("refreshes again");
    // The first use of the new ones ends all before.
    assert!(accepted(world, &token).await);
    assert!(!accepted(world, &agent.token).await);
    assert!(!accepted(world, &lost.0).await);
    assert!(refresh(&agent.refresh_token).await.is_none());
    assert!(refresh(&refresh_token).await.is_some());
    assert!(refresh(&token).await.is_none(), "an access token refreshes nothing");
}

async fn a_heartbeat_brings_a_host_back(world: &World) {
    let agent = world.host("one").await;
    let row = host::Entity::find_by_id(agent.host).one(&world.db).await.expect("reads").expect("is there");
    let mut row = row.into_active_model();
    row.status = Set(HostStatus::Unreachable);
    row.update(&world.db).await.expect("writes");
    let query = "mutation($specs: HostSpecsInput!) { hostHeartbeat(input: {specs: $specs}) { host { id status memoryMib } } }";
    let done = world.execute(Some(&agent.token), query, json!({"specs": specs(4096)})).await;
    assert_eq!(
        done.data.into_json().expect("is JSON")["hostHeartbeat"]["host"],
        json!({"id": agent.host.to_string(), "status": "ONLINE", "memoryMib": 4096})
    );
    let mut wrong = specs(4096);
    wrong["cpus"] = json!(0);
    let error = refused(world.execute(Some(&agent.token), query, json!({"specs": wrong})).await);
    assert_eq!(error.brief(), ("INVALID_INPUT", Some("cpus")));
}
