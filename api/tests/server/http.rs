use futures_util::stream;
use reqwest::Method;
use serde_json::json;

use crate::harness::{Running, VIEWER, header, refusal};

fn coded(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_what_is_closed_without() {
    let running = Running::start("").await;
    let (status, code, _) = refusal(running.query(VIEWER)).await;
    assert_eq!((status, code), coded(200, "UNAUTHENTICATED"));
    let (status, code, body) = refusal(running.query(VIEWER).header("x-api-key", "wrn_wrong")).await;
    assert_eq!((status, code), coded(401, "UNAUTHENTICATED"));
    assert!(body.get("data").is_none());
    let with_key = |name, value: String| running.query(VIEWER).header(name, value);
    for request in [
        with_key("x-api-key", running.api_key.clone()),
        with_key("authorization", format!("Bearer {}", running.api_key)),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "content-type"), "application/json");
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body["data"]["viewer"]["team"]["id"], running.team_id, "{body}");
    }
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_graphql_request_are_refused() {
    let running = Running::start("WRENN_MAX_BODY = 4096").await;
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
    {
        let request = running.post().header("content-type", content_type).body("{\"query\":\"{a}\"}");
        let (status, code, _) = refusal(request).await;
        assert_eq!((status, code), coded(415, "INVALID_INPUT"), "{content_type}");
    }
    for body in ["", "{", "null", "[]", " [{\"query\":\"{a}\"}]", "{}", "{\"query\":1}", "{\"query\":\"\"}"] {
        let request = running.post().header("content-type", "application/json; charset=utf-8").body(body);
        let (status, code, answer) = refusal(request).await;
        assert_eq!((status, code), coded(400, "INVALID_INPUT"), "{body}: {answer}");
    }
    let large = json!({ "query": "x".repeat(5000) }).to_string();
    let announced = running.post().header("content-type", "application/json").body(large.clone());
    let (status, code, _) = refusal(announced).await;
    assert_eq!((status, code), coded(413, "RESOURCE_EXHAUSTED"));
    let chunks = stream::iter([Ok::<_, std::io::Error>(large)]);
    let chunked =
        running.post().header("content-type", "application/json").body(reqwest::Body::wrap_stream(chunks));
    let (status, code, _) = refusal(chunked).await;
    assert_eq!((status, code), coded(413, "RESOURCE_EXHAUSTED"));
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_not_valid_is_answered_by_graphql() {
    let running = Running::start("").await;
    for document in ["{", "{ nothing }", "query q { viewer }"] {
        let (status, code, _) = refusal(running.query(document)).await;
        assert_eq!((status, code), coded(200, "INVALID_INPUT"), "{document}");
    }
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_paths_and_methods_are_refused_in_graphqls_shape() {
    let running = Running::start("").await;
    let (status, code, _) = refusal(running.get("/nothing")).await;
    assert_eq!((status, code), coded(404, "NOT_FOUND"));
    let (status, code, _) = refusal(running.http.delete(running.url("/graphql"))).await;
    assert_eq!((status, code), coded(405, "INVALID_INPUT"));
    let (status, code, _) = refusal(running.get("/graphql")).await;
    assert_eq!((status, code), coded(426, "INVALID_INPUT"));
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_its_request_id_and_security_headers() {
    let running = Running::start("").await;
    let taken = running.get("/health").header("x-request-id", "deploy-7.1").send().await.unwrap();
    assert_eq!(header(&taken, "x-request-id"), "deploy-7.1");
    let odd = running.get("/nothing").header("x-request-id", "a b").send().await.unwrap();
    let made = header(&odd, "x-request-id");
    assert_eq!(uuid::Uuid::parse_str(&made).unwrap().get_version_num(), 7);
    assert_eq!(header(&odd, "x-content-type-options"), "nosniff");
    assert_eq!(header(&odd, "x-frame-options"), "DENY");
    assert_eq!(header(&odd, "cache-control"), "no-store");
    assert!(header(&odd, "content-security-policy").contains("default-src 'none'"));
    assert!(odd.headers().get("strict-transport-security").is_none());
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_tell_how_the_server_is() {
    let running = Running::start("").await;
    let health: serde_json::Value = running.get("/health").send().await.unwrap().json().await.unwrap();
    assert_eq!(health["status"], "ok");
    let jobs: serde_json::Value = running.get("/health/jobs").send().await.unwrap().json().await.unwrap();
    assert!(jobs["jobs"].is_array());
    let sdl = running.get("/schema.graphql").send().await.unwrap().text().await.unwrap();
    assert_eq!(sdl, wrenn_schema::sdl());
    let metrics = running.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("wrenn_http_requests_total{method=\"GET\",path=\"/health\",status=\"200\"}"),
        "{metrics}"
    );
    assert!(metrics.contains("wrenn_http_request_seconds_bucket"), "{metrics}");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_introspection_the_schema_is_not_shown() {
    let running = Running::start("WRENN_INTROSPECTION = false").await;
    for path in ["/schema.graphql", "/graphiql", "/graphiql/page.js"] {
        let (status, code, _) = refusal(running.get(path)).await;
        assert_eq!((status, code), coded(404, "NOT_FOUND"), "{path}");
    }
    for query in ["{ __schema { types { name } } }", "{ __type(name: \"Capsule\") { name } }"] {
        let answer: serde_json::Value = running.query(query).send().await.unwrap().json().await.unwrap();
        assert!(answer.get("data").is_none_or(|data| data.pointer("/__schema/types").is_none()), "{answer}");
        assert!(!answer.to_string().contains("Capsule"), "{answer}");
    }
    let (_, code, body) = refusal(running.query("{ viewe { id } capsule(identity: 1) { id } }")).await;
    assert_eq!(code, "INVALID_INPUT");
    assert!(!body.to_string().contains("Did you mean"), "{body}");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_learn_the_whole_schema() {
    let running = Running::start("").await;
    let asked = running.query(include_str!("introspection.graphql")).send().await.unwrap();
    let answer: serde_json::Value = asked.json().await.unwrap();
    assert!(answer.get("errors").is_none(), "{}", answer["errors"]);
    let types = answer["data"]["__schema"]["types"].as_array().unwrap();
    assert!(types.iter().any(|of| of["name"] == "Capsule" && !of["fields"].as_array().unwrap().is_empty()));
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_unfold_are_refused_before_they_do() {
    let running = Running::start("").await;
    for (document, message) in unfolding() {
        let (status, code, body) = refusal(running.query(&document)).await;
        assert_eq!((status, code), coded(200, "INVALID_INPUT"), "{body}");
        assert!(body["errors"][0]["message"].as_str().unwrap().contains(message), "{body}");
    }
    running.server.stop().await;
}

/// Small documents that would take for ever, fill the memory or overflow a stack, and what is said of them.
pub fn unfolding() -> Vec<(String, &'static str)> {
    let fragments: String = (0..31)
        .map(|number| {
            let next = format!("...F{} ", number + 1).repeat(3);
            format!("fragment F{number} on Query {{ {next}}} ")
        })
        .collect();
    let names: String = (0..1000).map(|number| format!("a{number}: __typename ")).collect();
    vec![
        (format!("{{ ...F0 }} {fragments} fragment F31 on Query {{ __typename }}"), "100000 values"),
        (format!("{{ __schema {{ types {{ {names} }} }} }}"), "100000 values"),
        (
            format!(
                "{{ __type(name: \"Node\") {{ {} name {} }} }}",
                "possibleTypes { interfaces { ".repeat(8),
                "}".repeat(16)
            ),
            "100000 values",
        ),
        ("{ ...F } fragment F on Query { ...F }".to_owned(), "within itself"),
        (format!("{{ viewer(a: {}1{}) {{ id }} }}", "[".repeat(3000), "]".repeat(3000)), "100 levels"),
        (format!("{{ viewer(a: {}1{}) {{ id }} }}", "{a:".repeat(3000), "}".repeat(3000)), "100 levels"),
        (format!("{{ {} }}", "viewer ".repeat(100_000)), "65536 bytes"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_origins_pass_the_preflight() {
    let running = Running::start("WRENN_CORS_ORIGINS = 'https://dashboard.example'").await;
    let preflight = |origin| {
        running
            .http
            .request(Method::OPTIONS, running.url("/graphql"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type,x-api-key")
    };
    let listed = preflight("https://dashboard.example").send().await.unwrap();
    assert_eq!(header(&listed, "access-control-allow-origin"), "https://dashboard.example");
    assert!(header(&listed, "access-control-allow-headers").contains("x-api-key"));
    let other = preflight("https://evil.example").send().await.unwrap();
    assert!(other.headers().get("access-control-allow-origin").is_none());
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_sent_once_is_known_by_its_digest() {
    use sha2::{Digest, Sha256};
    let running = Running::start("").await;
    let hash: String = Sha256::digest(VIEWER).iter().map(|byte| format!("{byte:02x}")).collect();
    let ask = |query: Option<&str>, hash: &str| {
        let extensions = json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } });
        let body = match query {
            Some(query) => json!({ "query": query, "extensions": extensions }),
            None => json!({ "extensions": extensions }),
        };
        running.post().header("x-api-key", &running.api_key).json(&body)
    };
    let (status, code, body) = refusal(ask(None, &hash)).await;
    assert_eq!((status, code), coded(200, "NOT_FOUND"));
    assert_eq!(body["errors"][0]["message"], "PersistedQueryNotFound");
    let (status, code, _) = refusal(ask(Some("{ viewer { __typename } }"), &hash)).await;
    assert_eq!((status, code), coded(400, "INVALID_INPUT"));
    for query in [Some(VIEWER), None, None] {
        let body: serde_json::Value = ask(query, &hash).send().await.unwrap().json().await.unwrap();
        assert_eq!(body["data"]["viewer"]["team"]["id"], running.team_id, "{body}");
    }
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_told_where_the_time_goes() {
    let running = Running::start("").await;
    let ask = || running.query(VIEWER).header("x-api-key", &running.api_key);
    let body: serde_json::Value = ask().send().await.unwrap().json().await.unwrap();
    assert!(body.get("extensions").is_none(), "{body}");
    let body: serde_json::Value =
        ask().header("x-wrenn-timing", "1").send().await.unwrap().json().await.unwrap();
    let timing = &body["extensions"]["wrenn"];
    assert!(timing["databaseStatements"].as_u64().is_some_and(|statements| statements > 0), "{body}");
    assert_eq!((&timing["agentCalls"], &timing["agentMs"]), (&json!(0), &json!(0.0)), "{body}");
    assert_eq!(timing["guestMs"], 0.0, "{body}");
    let (total, database) = (timing["totalMs"].as_f64().unwrap(), timing["databaseMs"].as_f64().unwrap());
    assert!(total >= database && database > 0.0, "{timing}");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_costs_too_much_is_refused_before_it_is_carried_out() {
    let running = Running::start("").await;
    let ask = |query: String| running.query(&query).header("x-api-key", &running.api_key);
    let list = "capsules(first: 200) { nodes { id name state ports { number process since public } } }";
    let (_, code, body) = refusal(ask(format!("{{ a: {list} b: {list} }}"))).await;
    assert_eq!(code, "INVALID_INPUT", "lists multiply: {body}");
    let many: String = (0..10_001).map(|number| format!("a{number}: viewer {{ __typename }} ")).collect();
    let (_, code, body) = refusal(ask(format!("{{ {many} }}"))).await;
    assert_eq!(code, "INVALID_INPUT", "{body}");
    let deep = format!("{{ capsule(id: \"x\") {}{{ id }}{} }}", "{ parent ".repeat(25), "}".repeat(25));
    let (_, code, body) = refusal(ask(deep)).await;
    assert_eq!(code, "INVALID_INPUT", "{body}");
    let nested = format!("{}{}", "{ a ".repeat(5000), "}".repeat(5000));
    let (_, code, _) = refusal(ask(nested)).await;
    assert_eq!(code, "INVALID_INPUT", "it is read without a stack to overflow");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn graphiql_comes_whole_from_this_server() {
    let running = Running::start("").await;
    let page = running.get("/graphiql").send().await.unwrap();
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    let policy = header(&page, "content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(
        policy.ends_with(&format!("connect-src 'self' ws://{}", running.server.local_addr())),
        "{policy}"
    );
    let page = page.text().await.unwrap();
    assert!(
        !page.contains("//") && !page.contains("<script>"),
        "nothing from elsewhere, nothing inline: {page}"
    );
    let loaded: Vec<_> = page.split('"').filter(|text| text.starts_with("/graphiql/")).collect();
    assert_eq!(loaded.len(), 6, "{loaded:?}");
    for path in loaded {
        let asset = running.get(path).header("accept-encoding", "gzip").send().await.unwrap();
        assert_eq!(asset.status(), 200, "{path}");
        let expected =
            if path.ends_with(".css") { "text/css; charset=utf-8" } else { "text/javascript; charset=utf-8" };
        assert_eq!(header(&asset, "content-type"), expected);
        let gzip = asset.headers().contains_key("content-encoding");
        assert_eq!(asset.bytes().await.unwrap().starts_with(&[0x1f, 0x8b]), gzip, "{path}");
    }
    assert_eq!(refusal(running.get("/graphiql/react.js")).await.0, 406);
    assert_eq!(refusal(running.get("/graphiql/none.js")).await.0, 404);
    running.server.stop().await;
}
