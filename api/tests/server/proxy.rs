//! Services in capsules, reached through the whole server by name and by path.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use reqwest::{Client, Method, RequestBuilder, Response, redirect::Policy};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};
use wrenn_proto::agent::v1::CapsuleState;

use crate::{
    agent::PlayedAgent,
    guest,
    harness::{DEADLINE, Running, header, within},
};

const DOMAIN: &str = "WRENN_PROXY_DOMAIN = 'capsules.localhost'";

struct Hosted {
    running: Running,
    agent: Arc<PlayedAgent>,
    more: Arc<Semaphore>,
    /// Follows no redirects.
    http: Client,
    capsule: String,
}

impl Hosted {
    async fn start(settings: &str) -> Self {
        Self::start_with(settings, json!({})).await
    }

    async fn start_with(settings: &str, input: Value) -> Self {
        let running = Running::start(settings).await;
        let agent = Arc::new(PlayedAgent::register(&running, "one", 8192).await);
        let more = Arc::new(Semaphore::new(0));
        guest::serve(agent.clone(), more.clone());
        let http = Client::builder().redirect(Policy::none()).timeout(DEADLINE).build().unwrap();
        let mut hosted = Self { running, agent, more, http, capsule: String::new() };
        let create =
            "mutation($input: CreateCapsuleInput!) { createCapsule(input: $input) { capsule { id } } }";
        let made = hosted.ask(create, json!({ "input": input })).await;
        hosted.capsule = made["createCapsule"]["capsule"]["id"].as_str().expect("an id").to_owned();
        hosted
    }

    async fn ask(&self, query: &str, variables: Value) -> Value {
        let request = self.running.post().json(&json!({ "query": query, "variables": variables }));
        let answer = request.header("x-api-key", &self.running.api_key).send().await.unwrap();
        let mut body: Value = answer.json().await.unwrap();
        assert!(body.get("errors").is_none(), "{body}");
        body["data"].take()
    }

    async fn set_public(&self, port: u16, public: bool) {
        let set = "mutation($id: ID!, $port: Int!, $public: Boolean!) {
            setPortPublic(capsuleId: $id, port: $port, public: $public) { capsule { id } } }";
        self.ask(set, json!({ "id": self.capsule, "port": port, "public": public })).await;
    }

    /// The token of a preview of port 80.
    async fn preview(&self) -> String {
        self.preview_for(3600).await.0
    }

    /// The same for so many seconds, and when it expires.
    async fn preview_for(&self, seconds: u32) -> (String, DateTime<Utc>) {
        let make = "mutation($id: ID!, $sec: Int!) {
            createPreviewUrl(capsuleId: $id, port: 80, expiresInSec: $sec) { url expiresAt } }";
        let made = self.ask(make, json!({ "id": self.capsule, "sec": seconds })).await;
        let url = made["createPreviewUrl"]["url"].as_str().expect("a URL").to_owned();
        let expires_at = made["createPreviewUrl"]["expiresAt"].as_str().expect("a time");
        let expires_at = expires_at.parse().expect("a time");
        let (before, token) = url.split_once("?wrenn_token=").expect("a token");
        assert!(before.starts_with(&format!("http://80-{}.capsules.localhost:", self.capsule)), "{before}");
        (token.to_owned(), expires_at)
    }

    async fn pause(&self) {
        self.ask(
            "mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }",
            json!({ "id": self.capsule }),
        )
        .await;
    }

    fn host(&self, port: u16) -> String {
        format!("{port}-{}.capsules.localhost:8080", self.capsule)
    }

    fn prefix(&self, port: u16) -> String {
        format!("/proxy/{}/{port}", self.capsule)
    }

    /// By name, without a key.
    fn named(&self, method: Method, port: u16, path: &str) -> RequestBuilder {
        self.http.request(method, self.running.url(path)).header("host", self.host(port))
    }

    /// By path, without a key.
    fn below(&self, method: Method, port: u16, path: &str) -> RequestBuilder {
        self.http.request(method, self.running.url(&format!("{}{path}", self.prefix(port))))
    }

    fn keyed(&self, request: RequestBuilder) -> RequestBuilder {
        request.header("x-api-key", &self.running.api_key)
    }
}

/// Status, code and cause of an answer that is not the capsule's.
async fn problem(request: RequestBuilder) -> (u16, String, Option<String>) {
    let answer = request.send().await.unwrap();
    let (status, name) = (answer.status().as_u16(), header(&answer, "x-wrenn-error"));
    let body: Value = answer.json().await.unwrap();
    let extensions = &body["errors"][0]["extensions"];
    let cause = extensions["cause"].as_str().map(str::to_owned);
    let code = extensions["code"].as_str().expect("a code").to_owned();
    assert_eq!(name, *cause.as_ref().unwrap_or(&code), "{body}");
    (status, code, cause)
}

fn coded(status: u16, code: &str, cause: Option<&str>) -> (u16, String, Option<String>) {
    (status, code.to_owned(), cause.map(str::to_owned))
}

async fn text(request: RequestBuilder) -> String {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
    answer.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_arrive_as_they_were_sent_but_for_what_is_ours() {
    let hosted = Hosted::start(DOMAIN).await;
    let seen = text(
        hosted
            .keyed(hosted.named(Method::POST, 3000, "/graphql//a/?b=%20c&wrenn=1"))
            .header("authorization", "token theirs")
            .header("cookie", "a=b; wrenn_preview=x")
            .header("x-wrenn-port", "49983")
            .header("x-forwarded-for", "10.0.0.1")
            .body("x"),
    )
    .await;
    assert!(seen.starts_with("POST /graphql//a/?b=%20c&wrenn=1\n"), "{seen}");
    for line in [
        format!("host: {}", hosted.host(3000)),
        "authorization: token theirs".to_owned(),
        "cookie: a=b".to_owned(),
        "x-wrenn-port: 3000".to_owned(),
        format!("x-wrenn-capsule: {}", hosted.capsule),
        "x-forwarded-for: 10.0.0.1, 127.0.0.1".to_owned(),
        format!("x-forwarded-host: {}", hosted.host(3000)),
        "x-forwarded-proto: http".to_owned(),
        "content-length: 1".to_owned(),
    ] {
        assert!(seen.contains(&format!("{line}\n")), "{line} in {seen}");
    }
    assert!(!seen.contains(&hosted.running.api_key) && !seen.contains("wrenn_preview"), "{seen}");
    assert!(!seen.contains("x-forwarded-prefix"), "{seen}");

    let bearer = format!("Bearer {}", hosted.running.api_key);
    let seen = text(hosted.below(Method::GET, 3000, "/a/b/?c").header("authorization", bearer)).await;
    assert!(seen.starts_with("GET /a/b/?c\n") && !seen.contains("authorization"), "{seen}");
    assert!(seen.contains(&format!("x-forwarded-prefix: {}\n", hosted.prefix(3000))), "{seen}");

    // What the guest answers is passed on as it is: no header of ours, no opinion of ours.
    let answer = hosted.keyed(hosted.named(Method::GET, 3000, "/fails")).send().await.unwrap();
    assert_eq!(answer.status(), 500);
    for ours in ["content-security-policy", "x-frame-options", "cache-control", "x-wrenn-error"] {
        assert!(answer.headers().get(ours).is_none(), "{ours}");
    }
    assert_eq!(answer.text().await.unwrap(), "the guest fails");
    let preflight = hosted.keyed(hosted.named(Method::OPTIONS, 3000, "/a")).header("origin", "http://x");
    assert!(text(preflight.header("access-control-request-method", "PUT")).await.starts_with("OPTIONS /a\n"));

    // And what is this server's own is nowhere else.
    for own in ["/health", "/graphql"] {
        let elsewhere = hosted.http.get(hosted.running.url(own)).header("host", "x.capsules.localhost");
        assert_eq!(problem(elsewhere).await, coded(404, "NOT_FOUND", None));
    }
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_are_let_in_who_may() {
    let hosted = Hosted::start(DOMAIN).await;
    for request in [hosted.named(Method::GET, 80, "/"), hosted.below(Method::GET, 80, "/")] {
        assert_eq!(problem(request).await, coded(401, "UNAUTHENTICATED", None));
    }
    let wrong = hosted.named(Method::GET, 80, "/").header("x-api-key", "wrn_wrong");
    assert_eq!(problem(wrong).await, coded(401, "UNAUTHENTICATED", None));
    let page = hosted.named(Method::GET, 80, "/").header("accept", "text/html").send().await.unwrap();
    assert_eq!((page.status().as_u16(), header(&page, "x-wrenn-error").as_str()), (401, "UNAUTHENTICATED"));
    assert!(page.text().await.unwrap().contains("<h1>Unauthorized</h1>"));

    hosted.set_public(80, true).await;
    assert!(text(hosted.named(Method::GET, 80, "/a")).await.starts_with("GET /a\n"));
    let theirs = hosted.named(Method::GET, 80, "/").header("x-api-key", "theirs");
    assert!(text(theirs).await.contains("x-api-key: theirs\n"), "a key of the guest's own");
    hosted.set_public(80, false).await;
    assert_eq!(problem(hosted.named(Method::GET, 80, "/")).await.0, 401);

    for (port, expected) in [
        (49_983, coded(403, "FORBIDDEN", None)),
        (0, coded(400, "INVALID_INPUT", None)),
        (81, coded(502, "UNAVAILABLE", Some("PORT_CLOSED"))),
    ] {
        assert_eq!(problem(hosted.keyed(hosted.named(Method::GET, port, "/"))).await, expected);
        assert_eq!(problem(hosted.keyed(hosted.below(Method::GET, port, "/"))).await, expected);
    }
    let nobody = hosted.running.url("/proxy/cl-0000000000000000000000001/80/");
    let asked = hosted.keyed(hosted.http.get(&nobody));
    assert_eq!(problem(asked).await, coded(404, "NOT_FOUND", None));
    assert_eq!(problem(hosted.http.get(&nobody)).await.0, 401);
    hosted.running.server.stop().await;
}

/// `name=value` of the cookie that an answer sets, and the rest of it.
fn cookie(answer: &Response) -> (String, String) {
    let (pair, rest) =
        header(answer, "set-cookie").split_once("; ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    (pair, rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_url_opens_one_port_and_a_cookie_goes_on() {
    let hosted = Hosted::start(DOMAIN).await;
    let token = hosted.preview().await;
    for (by_name, path) in [(true, "/".to_owned()), (false, format!("{}/", hosted.prefix(80)))] {
        let ask = |path: &str| match by_name {
            true => hosted.named(Method::GET, 80, path),
            false => hosted.below(Method::GET, 80, path),
        };
        // A browser is sent on without the token.
        let opened = ask(&format!("/a/?x=y&wrenn_token={token}&z"))
            .header("accept", "text/html")
            .send()
            .await
            .unwrap();
        assert_eq!(opened.status(), 303);
        let place = if by_name { "/a/?x=y&z".to_owned() } else { format!("{}/a/?x=y&z", hosted.prefix(80)) };
        assert_eq!(header(&opened, "location"), place);
        let (pair, rest) = cookie(&opened);
        assert!(rest.starts_with(&format!("Path={path}; Max-Age=3")), "{rest}");
        assert!(rest.ends_with("; HttpOnly; SameSite=Lax"), "{rest}");
        let seen = text(ask("/a/?x=y&z").header("cookie", format!("theirs=1; {pair}"))).await;
        assert!(seen.contains("cookie: theirs=1\n"), "{seen}");

        // A program is served at once, and gets the cookie too.
        let served = ask(&format!("/?wrenn_token={token}")).send().await.unwrap();
        assert_eq!((served.status().as_u16(), cookie(&served).0), (200, pair.clone()));
        assert!(served.text().await.unwrap().starts_with("GET /\n"));

        // Not by another port, not by a page of another origin, not with another token.
        let other = match by_name {
            true => hosted.named(Method::GET, 82, "/"),
            false => hosted.below(Method::GET, 82, "/"),
        };
        assert_eq!(problem(other.header("cookie", &pair)).await.0, 401);
        let foreign = |method: Method| {
            let request = match by_name {
                true => hosted.named(method, 80, "/"),
                false => hosted.below(method, 80, "/"),
            };
            request.header("cookie", &pair).header("origin", "http://evil.example")
        };
        assert_eq!(problem(foreign(Method::POST)).await, coded(403, "FORBIDDEN", None));
        assert_eq!(foreign(Method::GET).send().await.unwrap().status(), 200);
        let upgrade = foreign(Method::GET).header("connection", "upgrade").header("upgrade", "websocket");
        assert_eq!(problem(upgrade).await.0, 403);
        assert_eq!(problem(ask("/?wrenn_token=AAAA")).await, coded(401, "UNAUTHENTICATED", None));
    }
    // A cookie that is good for nothing is no hindrance where nothing is wanted.
    hosted.set_public(80, true).await;
    assert_eq!(
        hosted.named(Method::GET, 80, "/").header("cookie", "wrenn_preview=x").send().await.unwrap().status(),
        200
    );
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_cookies_and_origins_hold_outside() {
    let hosted = Hosted::start(DOMAIN).await;
    let prefix = hosted.prefix(3000);
    for (said, by_path, by_name) in [
        ("/x/", format!("{prefix}/x/"), "/x/".to_owned()),
        ("http://localhost:3000/x", format!("{prefix}/x"), "/x".to_owned()),
        (
            "http://127.0.0.1:81/x",
            format!("{}/x", hosted.prefix(81)),
            format!("http://81-{}.capsules.localhost:8080/x", hosted.capsule),
        ),
        ("http://other.example/", "http://other.example/".to_owned(), "http://other.example/".to_owned()),
        ("x/y", "x/y".to_owned(), "x/y".to_owned()),
    ] {
        let path = format!("/redirect?{said}");
        let below = hosted.keyed(hosted.below(Method::GET, 3000, &path)).send().await.unwrap();
        assert_eq!((below.status().as_u16(), header(&below, "location")), (302, by_path));
        let named = hosted.keyed(hosted.named(Method::GET, 3000, &path)).send().await.unwrap();
        assert_eq!(header(&named, "location"), by_name);
    }
    let below = hosted.keyed(hosted.below(Method::GET, 3000, "/cookies")).send().await.unwrap();
    assert_eq!(cookie(&below), ("a=b".to_owned(), format!("Path={prefix}/")));
    assert_eq!(below.headers().get_all("set-cookie").iter().count(), 1, "not one of ours");
    let named = hosted.keyed(hosted.named(Method::GET, 3000, "/cookies")).send().await.unwrap();
    assert_eq!(cookie(&named), ("a=b".to_owned(), "Path=/".to_owned()));

    let names = ["service-worker-allowed", "clear-site-data", "strict-transport-security", "x-own"];
    let below = hosted.keyed(hosted.below(Method::GET, 3000, "/origin")).send().await.unwrap();
    assert_eq!(names.map(|name| below.headers().contains_key(name)), [false, false, false, true]);
    let named = hosted.keyed(hosted.named(Method::GET, 3000, "/origin")).send().await.unwrap();
    assert_eq!(names.map(|name| named.headers().contains_key(name)), [true; 4], "its own origin");

    let bare = hosted.http.get(hosted.running.url(&format!("{prefix}?a=b"))).send().await.unwrap();
    assert_eq!((bare.status().as_u16(), header(&bare, "location")), (308, format!("{prefix}/?a=b")));
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_flow_both_ways_as_they_come() {
    let hosted = Hosted::start("").await;
    let events = hosted.keyed(hosted.below(Method::GET, 80, "/events")).send().await.unwrap();
    assert_eq!(header(&events, "content-type"), "text/event-stream");
    let mut events = events.bytes_stream();
    for sent in 0..5 {
        // Each before the next one exists.
        hosted.more.add_permits(1);
        assert_eq!(within(events.next()).await.unwrap().unwrap(), format!("data: {sent}\n\n"));
    }
    drop(events);

    const SIZE: usize = 64 * 1024 * 1024;
    let chunk = bytes::Bytes::from(vec![0; 64 * 1024]);
    let chunks = (0..SIZE / chunk.len()).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    assert_eq!(
        text(hosted.keyed(hosted.below(Method::PUT, 80, "/upload")).body(body)).await,
        SIZE.to_string()
    );
    hosted.running.server.stop().await;
}

/// A tunnel to port 80, opened by a query and headers of one's own.
async fn tunnel(hosted: &Hosted, query: &str, headers: &str) -> TcpStream {
    let mut socket = TcpStream::connect(hosted.running.server.local_addr()).await.unwrap();
    let request = format!(
        "GET {}/tunnel{query} HTTP/1.1\r\nhost: x\r\n{headers}connection: Upgrade\r\nupgrade: echo\r\n\r\n",
        hosted.prefix(80),
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(socket.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: echo\r\n"), "{head}");
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_becomes_a_tunnel_until_the_server_goes() {
    let hosted = Hosted::start("").await;
    let mut socket = tunnel(&hosted, "", &format!("x-api-key: {}\r\n", hosted.running.api_key)).await;
    for word in ["to ", "and ", "fro"] {
        socket.write_all(word.as_bytes()).await.unwrap();
        let mut back = vec![0; word.len()];
        within(socket.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, word.as_bytes());
    }
    hosted.running.server.stop().await;
    assert_eq!(within(socket.read(&mut [0; 8])).await.unwrap_or(0), 0, "it ends with the server");
}

/// Waits until it ends, however that is.
async fn ended(mut socket: TcpStream) {
    assert_eq!(within(socket.read(&mut [0])).await.unwrap_or(0), 0);
}

/// The same of an answer.
async fn broken_off(answer: Response) {
    let end = answer.bytes().await.expect_err("it is not whole");
    assert!(!end.is_timeout(), "it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_ends_with_the_permission() {
    let hosted = Hosted::start(DOMAIN).await;
    let events = async |query: &str, key: Option<&str>| {
        let mut request = hosted.below(Method::GET, 80, &format!("/events{query}"));
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer
    };
    hosted.set_public(80, true).await;
    let public = (tunnel(&hosted, "", "").await, events("", None).await);
    let key = format!("x-api-key: {}\r\n", hosted.running.api_key);
    let keyed = (tunnel(&hosted, "", &key).await, events("", Some(&hosted.running.api_key)).await);
    let signed = format!("?wrenn_token={}", hosted.preview().await);
    let signed = (tunnel(&hosted, &signed, "").await, events(&signed, None).await);
    let (short, expires_at) = hosted.preview_for(3).await;
    let short = format!("?wrenn_token={short}");
    let short = (tunnel(&hosted, &short, "").await, events(&short, None).await);

    tokio::join!(ended(short.0), broken_off(short.1));
    assert!(Utc::now() >= expires_at, "not before");
    hosted.set_public(80, false).await;
    tokio::join!(ended(public.0), broken_off(public.1));
    // Those of others go on.
    let mut echo = [0];
    let mut tunnels = [keyed.0, signed.0];
    for tunnel in &mut tunnels {
        tunnel.write_all(b"x").await.unwrap();
        within(tunnel.read_exact(&mut echo)).await.unwrap();
    }
    hosted.running.revoke_keys().await;
    let [one, other] = tunnels.map(ended);
    tokio::join!(one, other, broken_off(keyed.1), broken_off(signed.1));
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_ends_with_the_permission() {
    let hosted = Hosted::start(DOMAIN).await;
    let (token, expires_at) = hosted.preview_for(3).await;
    let mut idle = TcpStream::connect(hosted.running.server.local_addr()).await.unwrap();
    let path = format!("{}/flood?wrenn_token={token}", hosted.prefix(80));
    idle.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    // The guest has the permit as long as it floods.
    hosted.more.add_permits(1);
    within(idle.readable()).await.unwrap();
    assert_eq!(hosted.more.available_permits(), 0);
    drop(within(hosted.more.acquire()).await.unwrap());
    assert!(Utc::now() >= expires_at, "not before");

    let mut answer = Vec::new();
    within(idle.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && !answer.ends_with(b"\r\n0\r\n\r\n"), "it is not whole");
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_says_so_or_goes_on() {
    let hosted = Hosted::start("").await;
    let ask = || hosted.keyed(hosted.below(Method::GET, 80, "/"));
    text(ask()).await;
    hosted.pause().await;
    let expected = coded(409, "FAILED_PRECONDITION", Some("CAPSULE_PAUSED"));
    assert_eq!(problem(ask()).await, expected);
    // Also while nobody has heard of it yet but its host.
    hosted
        .ask(
            "mutation($id: ID!) { resumeCapsule(id: $id) { capsule { id } } }",
            json!({ "id": hosted.capsule }),
        )
        .await;
    text(ask()).await;
    hosted.agent.put(hosted.capsule.parse().unwrap(), CapsuleState::Paused);
    assert_eq!(problem(ask()).await, expected);
    hosted.running.server.stop().await;

    let hosted = Hosted::start_with("", json!({ "autoResume": true })).await;
    let ask = |method| hosted.keyed(hosted.below(method, 80, "/"));
    hosted.pause().await;
    let all = futures_util::future::join_all((0..8).map(|_| text(ask(Method::GET)))).await;
    assert!(all.iter().all(|seen| seen.starts_with("GET /\n")), "{all:?}");
    assert_eq!(hosted.agent.calls("resume"), 1);
    hosted.agent.put(hosted.capsule.parse().unwrap(), CapsuleState::Paused);
    text(ask(Method::GET)).await;
    assert_eq!(hosted.agent.calls("resume"), 2);
    // What the guest has got already is not sent again.
    hosted.more.add_permits(1);
    let cut_off = hosted.keyed(hosted.below(Method::POST, 80, "/cut-off"));
    let expected = coded(503, "UNAVAILABLE", Some("CAPSULE_PAUSED_MEANWHILE"));
    assert_eq!(problem(cut_off).await, expected);
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_gone_is_said_to_be() {
    let hosted = Hosted::start("").await;
    let ask = || hosted.keyed(hosted.below(Method::GET, 80, "/"));
    text(ask()).await;
    hosted.agent.kill();
    let deadline = std::time::Instant::now() + crate::agent::PATIENCE;
    loop {
        // A connection that stands is good until it breaks.
        let answer = ask().send().await.unwrap();
        if answer.status() == 502 {
            break assert_eq!(header(&answer, "x-wrenn-error"), "HOST_AGENT_LOST");
        }
        assert!(std::time::Instant::now() < deadline, "{answer:?}");
    }
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_can_be_turned_off() {
    let hosted = Hosted::start(&format!("{DOMAIN}\nWRENN_PROXY_PATHS = false")).await;
    let below = hosted.keyed(hosted.below(Method::GET, 80, "/")).send().await.unwrap();
    assert_eq!(below.status(), 404);
    assert!(below.headers().get("x-wrenn-error").is_none());
    text(hosted.keyed(hosted.named(Method::GET, 80, "/"))).await;
    hosted.running.server.stop().await;
}
