//! Files of capsules over HTTP, through the whole server to a host agent whose capsules are played.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::{
    agent::{
        PATIENCE, PlayedAgent,
        files::{BROKEN, NULL, ZEROS},
    },
    harness::{MEMORY, Running, header, refusal},
};

struct Hosted {
    running: Running,
    agent: PlayedAgent,
    capsule: String,
}

impl Hosted {
    async fn start() -> Self {
        let running = Running::start("").await;
        let agent = PlayedAgent::register(&running, "one", 8192).await;
        let made: Value = running
            .query("mutation { createCapsule(input: {}) { capsule { id } } }")
            .header("x-api-key", &running.api_key)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let capsule = made["data"]["createCapsule"]["capsule"]["id"].as_str().expect("an id").to_owned();
        Self { running, agent, capsule }
    }

    /// `query`: what follows the `?`, encoded.
    fn request(&self, method: Method, query: &str) -> RequestBuilder {
        let url = self.running.url(&format!("/files/{}?{query}", self.capsule));
        self.running.http.request(method, url).header("x-api-key", &self.running.api_key)
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, &format!("path={path}"))
    }

    fn put(&self, path: &str) -> RequestBuilder {
        self.request(Method::PUT, &format!("path={path}"))
    }

    /// A URL that needs no key.
    async fn sign(&self, path: &str, method: &str, seconds: u32) -> String {
        let query = "mutation($id: ID!, $path: String!, $method: FileMethod!, $sec: Int!) {
            createFileUrl(capsuleId: $id, path: $path, method: $method, expiresInSec: $sec) { url } }";
        let variables = json!({ "id": self.capsule, "path": path, "method": method, "sec": seconds });
        let made = self.running.post().json(&json!({ "query": query, "variables": variables }));
        let made = made.header("x-api-key", &self.running.api_key).send().await.unwrap();
        let made: Value = made.json().await.unwrap();
        let url =
            made["data"]["createFileUrl"]["url"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        self.running.url(&url[url.find("/files/").expect("a path")..])
    }
}

/// Waits until it holds.
async fn until(mut holds: impl FnMut() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_in_and_comes_out() {
    let hosted = Hosted::start().await;
    let put = hosted.put("/tmp/%C3%A4+b.txt&mode=0640&parents=true&user=root");
    let response = put.body("hello world").send().await.unwrap();
    assert_eq!(response.status(), 200);
    let written: Value = response.json().await.unwrap();
    assert_eq!(
        written["entry"],
        json!({
            "name": "ä b.txt", "path": "/tmp/ä b.txt", "kind": "FILE", "size": "11", "mode": 0o640,
            "owner": "root", "group": "root", "modifiedAt": "2023-11-14T22:13:20Z", "symlinkTarget": null,
        })
    );
    hosted.agent.with_files(|files| {
        assert_eq!(files.written, Some((Some(0o640), true, "root".to_owned())));
    });

    let response = hosted.get("/tmp/%C3%A4%20b.txt").send().await.unwrap();
    assert_eq!(response.status(), 200);
    for (name, value) in [
        ("content-length", "11"),
        ("content-type", "application/octet-stream"),
        ("accept-ranges", "bytes"),
        ("x-wrenn-path", "/tmp/%C3%A4%20b.txt"),
        ("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ("content-disposition", "attachment; filename*=UTF-8''%C3%A4%20b.txt"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(header(&response, name), value, "{name}");
    }
    assert_eq!(response.text().await.unwrap(), "hello world");
    let head = hosted.request(Method::HEAD, "path=/tmp/%C3%A4%20b.txt").send().await.unwrap();
    assert_eq!((head.status(), header(&head, "content-length").as_str()), (StatusCode::OK, "11"));
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_parts_of_the_file() {
    let hosted = Hosted::start().await;
    hosted.agent.with_files(|files| {
        files.put("/f", "0123456789");
        files.put("/empty", "");
    });
    for (range, status, content_range, body) in [
        ("bytes=0-0", 206, Some("bytes 0-0/10"), "0"),
        ("bytes=4-", 206, Some("bytes 4-9/10"), "456789"),
        ("bytes=4-99", 206, Some("bytes 4-9/10"), "456789"),
        ("bytes=-3", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=-99", 206, Some("bytes 0-9/10"), "0123456789"),
        ("bytes=0-1,4-5", 200, None, "0123456789"),
        ("chapters=1-2", 200, None, "0123456789"),
    ] {
        let response = hosted.get("/f").header("range", range).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{range}");
        let shown = response.headers().get("content-range").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(shown.as_deref(), content_range, "{range}");
        assert_eq!(header(&response, "content-length"), body.len().to_string(), "{range}");
        assert_eq!(response.text().await.unwrap(), body, "{range}");
    }
    for (path, range, size) in [
        ("/f", "bytes=10-", 10),
        ("/f", "bytes=-0", 10),
        ("/f", "bytes=10-20", 10),
        ("/empty", "bytes=0-", 0),
    ] {
        let response = hosted.get(path).header("range", range).send().await.unwrap();
        assert_eq!(response.status(), 416, "{path} {range}");
        assert_eq!(header(&response, "content-range"), format!("bytes */{size}"));
        let (_, code, _) = refusal(hosted.get(path).header("range", range)).await;
        assert_eq!(code, "INVALID_INPUT");
    }
    let empty = hosted.get("/empty").send().await.unwrap();
    assert_eq!((empty.status(), empty.text().await.unwrap().as_str()), (StatusCode::OK, ""));
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_keep_their_code() {
    let hosted = Hosted::start().await;
    hosted.agent.with_files(|files| files.make_directory("/d").map(drop).expect("is made"));
    let of = |capsule: &str, query: &str| {
        let url = hosted.running.url(&format!("/files/{capsule}?{query}"));
        hosted.running.http.get(url).header("x-api-key", &hosted.running.api_key)
    };
    let without_key = hosted.running.get(&format!("/files/{}?path=/f", hosted.capsule));
    for (request, status, code, field) in [
        (hosted.get("/none"), 404, "NOT_FOUND", Some("path")),
        (hosted.get("/d"), 409, "FAILED_PRECONDITION", Some("path")),
        (hosted.get(""), 400, "INVALID_INPUT", Some("path")),
        (of("%ff", "path=/f"), 400, "INVALID_INPUT", None),
        (of("cl-1", "path=/f"), 400, "INVALID_INPUT", Some("capsule")),
        (of("cl-0000000000000000000000000", "path=/f"), 404, "NOT_FOUND", None),
        (of(&hosted.capsule, ""), 400, "INVALID_INPUT", Some("path")),
        (of(&hosted.capsule, "path=/f&paht=/g"), 400, "INVALID_INPUT", None),
        (hosted.put("/f&mode=rw").body("x"), 400, "INVALID_INPUT", Some("mode")),
        (hosted.put("/no/such/f").body("x"), 404, "NOT_FOUND", Some("path")),
        (hosted.put("/full").body("x"), 507, "RESOURCE_EXHAUSTED", None),
        (hosted.request(Method::DELETE, "path=/f"), 405, "INVALID_INPUT", None),
        (without_key, 401, "UNAUTHENTICATED", None),
    ] {
        let (got, got_code, body) = refusal(request).await;
        assert_eq!((got, got_code.as_str()), (status, code), "{body}");
        assert_eq!(body["errors"][0]["extensions"]["field"].as_str(), field, "{body}");
    }
    hosted.running.server.stop().await;
}

/// Bytes of this process's memory that are in RAM.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("has a size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// Server, agent and client are all in this process: what any of them gathered would be seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_takes_no_memory() {
    const SIZE: u64 = 256 * 1024 * 1024;
    const ROOM: u64 = 64 * 1024 * 1024;
    let hosted = Hosted::start().await;
    let _alone = MEMORY.lock().await;
    let before = resident();
    let mut highest = before;
    let response = hosted.get(&format!("{ZEROS}{SIZE}")).send().await.unwrap();
    assert_eq!(header(&response, "content-length"), SIZE.to_string());
    let mut content = response.bytes_stream();
    let mut received = 0;
    while let Some(chunk) = content.next().await {
        received += chunk.unwrap().len() as u64;
        if received % (16 * 1024 * 1024) < 64 * 1024 {
            highest = highest.max(resident());
        }
    }
    assert_eq!(received, SIZE);
    let chunk = bytes::Bytes::from(vec![0; 256 * 1024]);
    let chunks = (0..SIZE / chunk.len() as u64).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
    let put = hosted.put(NULL).body(reqwest::Body::wrap_stream(stream::iter(chunks)));
    let mut sending = std::pin::pin!(put.send());
    let response = loop {
        tokio::select! {
            response = &mut sending => break response.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(20)) => highest = highest.max(resident()),
        }
    };
    let written: Value = response.json().await.unwrap();
    assert_eq!(written["entry"]["size"], SIZE.to_string());
    let grown = highest.saturating_sub(before);
    assert!(grown < ROOM, "{} MiB more than before", grown / 1024 / 1024);
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_is_not_taken_for_whole() {
    let hosted = Hosted::start().await;
    hosted.agent.with_files(|files| {
        files.put(BROKEN, vec![0; 1024 * 1024]);
        files.put("/f", "old");
    });
    // The connection ends before the content does, and maybe before its beginning was sent.
    if let Ok(response) = hosted.get(BROKEN).send().await {
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err(), "the content is not whole");
    }
    assert_ne!(hosted.agent.calls("read_file"), 0, "it was the content that broke off");

    // A client that goes away in the middle of writing changes nothing.
    let body = stream::iter([Ok::<_, std::io::Error>("new")]).chain(stream::pending());
    let put = hosted.put("/f").body(reqwest::Body::wrap_stream(body)).send();
    tokio::select! {
        answer = put => panic!("answered before it was whole: {answer:?}"),
        () = until(|| hosted.agent.calls("write_file") > 0, "the writing does not begin") => {}
    }
    let broken_off = || hosted.agent.with_files(|files| files.broken_off) > 0;
    until(broken_off, "the agent does not learn that the client is gone").await;
    assert_eq!(hosted.get("/f").send().await.unwrap().text().await.unwrap(), "old");

    // A client that stops reading ends the reading in the capsule.
    let mut content = hosted.get(&format!("{ZEROS}{}", 1u64 << 40)).send().await.unwrap().bytes_stream();
    assert!(content.next().await.is_some_and(|chunk| chunk.is_ok()));
    drop(content);
    until(|| hosted.agent.with_files(|files| files.readers()) == 0, "somebody still reads").await;
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_url_needs_no_key_and_opens_one_file_one_way() {
    let hosted = Hosted::start().await;
    let http = &hosted.running.http;
    let (read, write) = (hosted.sign("/a ä", "GET", 300).await, hosted.sign("/a ä", "PUT", 300).await);
    assert_eq!(http.put(&write).body("signed").send().await.unwrap().status(), 200);
    let part = http.get(&read).header("range", "bytes=0-2").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.text().await.unwrap().as_str()), (206, "sig"));
    assert_eq!(http.head(&read).send().await.unwrap().status(), 200);
    hosted.agent.with_files(|files| assert_eq!(files.get("/a ä").as_deref(), Some(&b"signed"[..])));

    for (request, status, code) in [
        (http.put(&read).body("x"), 401, "UNAUTHENTICATED"),
        (http.get(&write), 401, "UNAUTHENTICATED"),
        (http.get(read.replace("path=/a", "path=/b")), 401, "UNAUTHENTICATED"),
        (http.get(format!("{read}&user=root")), 401, "UNAUTHENTICATED"),
        (http.get(format!("{read}x")), 401, "UNAUTHENTICATED"),
        (http.put(format!("{write}&mode=4755")).body("x"), 400, "INVALID_INPUT"),
        (http.put(format!("{write}&parents=true")).body("x"), 400, "INVALID_INPUT"),
        // Who shows both is who signed.
        (http.get(&write).header("x-api-key", &hosted.running.api_key), 401, "UNAUTHENTICATED"),
    ] {
        let (got, got_code, body) = refusal(request).await;
        assert_eq!((got, got_code.as_str()), (status, code), "{body}");
    }
    hosted.running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_ends_with_its_key_but_not_with_its_url() {
    let hosted = Hosted::start().await;
    hosted.agent.with_files(|files| files.put("/f", "old"));
    let endless = format!("{ZEROS}{}", 1u64 << 40);
    // One whose client takes nothing of it, one that is read, one that is written.
    let idle = hosted.get(&endless).send().await.unwrap();
    let url = hosted.sign(&endless, "GET", 3).await;
    let mut read = hosted.running.http.get(&url).send().await.unwrap().bytes_stream();
    let body = stream::iter([Ok::<_, std::io::Error>("new")]).chain(stream::pending());
    let written = tokio::spawn(refusal(hosted.put("/f").body(reqwest::Body::wrap_stream(body))));
    until(|| hosted.agent.calls("write_file") == 1, "the writing does not begin").await;
    assert_eq!(hosted.agent.with_files(|files| files.readers()), 2);

    let deadline = Instant::now() + PATIENCE;
    while hosted.running.http.head(&url).send().await.unwrap().status() != 401 {
        assert!(Instant::now() < deadline, "the URL does not expire");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(read.next().await.is_some_and(|chunk| chunk.is_ok()), "what was begun in time goes on");

    hosted.running.revoke_keys().await;
    let reading = async {
        while read.next().await.is_some_and(|chunk| chunk.is_ok()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it goes on");
    until(|| hosted.agent.with_files(|files| files.readers()) == 0, "somebody still reads").await;
    idle.bytes().await.expect_err("it is not whole");
    let (status, code, body) = written.await.unwrap();
    assert_eq!((status, code.as_str()), (401, "UNAUTHENTICATED"), "{body}");
    until(|| hosted.agent.with_files(|files| files.broken_off) == 1, "somebody still writes").await;
    assert_eq!(hosted.agent.with_files(|files| files.get("/f")).as_deref(), Some(&b"old"[..]));
    hosted.running.server.stop().await;
}
