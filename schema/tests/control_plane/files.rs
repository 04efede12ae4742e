//! Files of capsules: what there is, changing it, watching it, and their content.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use wrenn_entities::{CapsuleId, id::TypedId};
use wrenn_proto::envd::v1::{self as envd, file_event};
use wrenn_schema::{
    Code,
    access::{Caller, Credentials, RequestId, authenticate},
    transfer::{self, Direction, Place, WriteOptions},
};

use crate::{
    agent::{
        PATIENCE,
        files::{BROKEN, NULL, ZEROS},
    },
    on_both_databases,
    world::{Refused, World, next, next_data},
};

on_both_databases!(
    what_there_is_is_listed,
    what_there_is_is_changed,
    errors_keep_their_code,
    a_directory_is_watched,
    content_flows_both_ways,
    what_breaks_off_changes_nothing,
    small_files_are_written,
    urls_open_one_file_one_way,
);

const ENTRY: &str = "name path kind size mode owner group modifiedAt symlinkTarget";

async fn what_there_is_is_listed(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    agent.with_files(|files| {
        files.make_directory("/d").expect("is made");
        files.make_directory("/d/empty").expect("is made");
        files.put("/d/f", "12345");
    });
    let query = format!(
        "query($id: ID!, $path: String!, $depth: Int) {{ capsule(id: $id) {{ files(path: $path, depth: $depth) {{
            {ENTRY} children {{ name children {{ name }} }}
        }} }} }}"
    );
    let list = async |path: &str, depth: Option<i32>| {
        let found = world.ask(&query, json!({"id": id, "path": path, "depth": depth})).await;
        found["capsule"]["files"].clone()
    };
    let time = "2023-11-14T22:13:20+00:00";
    assert_eq!(
        list("/d", None).await,
        json!([
            {"name": "empty", "path": "/d/empty", "kind": "DIRECTORY", "size": "0", "mode": 420, "owner": "root",
             "group": "root", "modifiedAt": time, "symlinkTarget": null, "children": null},
            {"name": "f", "path": "/d/f", "kind": "FILE", "size": "5", "mode": 420, "owner": "root",
             "group": "root", "modifiedAt": time, "symlinkTarget": null, "children": null},
        ])
    );
    let deep = list("/", Some(2)).await;
    assert_eq!(
        deep[0]["children"],
        json!([{"name": "empty", "children": null}, {"name": "f", "children": null}])
    );
    let deeper = list("/", Some(3)).await;
    assert_eq!(deeper[0]["children"][0], json!({"name": "empty", "children": []}), "known to be empty");

    for (path, depth, code, field) in [
        ("", Some(1), "INVALID_INPUT", "path"),
        ("/d", Some(0), "INVALID_INPUT", "depth"),
        ("/d", Some(17), "INVALID_INPUT", "depth"),
        ("/none", Some(1), "NOT_FOUND", "path"),
    ] {
        let error = world.refused(&query, json!({"id": id, "path": path, "depth": depth})).await;
        assert_eq!(error.brief(), (code, Some(field)), "{path} {depth:?}: {error:?}");
    }
    world.ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id})).await;
    let error = world.refused(&query, json!({"id": id, "path": "/d"})).await;
    assert_eq!(error.code, "FAILED_PRECONDITION");
}

async fn what_there_is_is_changed(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    agent.with_files(|files| files.put("/f", "12345"));
    let done = world
        .ask(
            "mutation($id: ID!) {
                makeDir(capsuleId: $id, path: \"/d\") { entry { path kind } }
                movePath(capsuleId: $id, from: \"/f\", to: \"/d/g\", user: \"root\") { entry { path size } }
                removePath(capsuleId: $id, path: \"/d\") { entry { path } }
                again: removePath(capsuleId: $id, path: \"/d\") { entry { path } }
            }",
            json!({"id": id}),
        )
        .await;
    assert_eq!(
        done,
        json!({
            "makeDir": {"entry": {"path": "/d", "kind": "DIRECTORY"}},
            "movePath": {"entry": {"path": "/d/g", "size": "5"}},
            "removePath": {"entry": null},
            "again": {"entry": null},
        })
    );
    assert!(agent.with_files(|files| files.get("/d/g")).is_none());
}

async fn errors_keep_their_code(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    agent.with_files(|files| files.put("/f", "12345"));
    for (call, code, field) in [
        ("makeDir(capsuleId: $id, path: \"/f\")", "CONFLICT", "path"),
        ("makeDir(capsuleId: $id, path: \"\")", "INVALID_INPUT", "path"),
        ("makeDir(capsuleId: $id, path: \"/d\", user: \"a\\u0000\")", "INVALID_INPUT", "user"),
        ("movePath(capsuleId: $id, from: \"/none\", to: \"/g\")", "NOT_FOUND", "from"),
        ("movePath(capsuleId: $id, from: \"/f\", to: \"\")", "INVALID_INPUT", "to"),
        ("removePath(capsuleId: $id, path: \"a\\u0000\")", "INVALID_INPUT", "path"),
    ] {
        let query = format!("mutation($id: ID!) {{ {call} {{ entry {{ path }} }} }}");
        let error = world.refused(&query, json!({"id": id})).await;
        assert_eq!(error.brief(), (code, Some(field)), "{call}: {error:?}");
    }
    let (_, other) = world.other_team().await;
    let query = "mutation($id: ID!) { makeDir(capsuleId: $id, path: \"/d\") { entry { path } } }";
    let response = world.execute(Some(&other), query, json!({"id": id})).await;
    assert_eq!(Refused::of(&response.errors[0]).code, "NOT_FOUND");
    assert_eq!(agent.calls("make_directory"), 1);
}

async fn a_directory_is_watched(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = "subscription($id: ID!) { watchDirectory(capsuleId: $id, path: \"~/src\", recursive: true) {
        __typename
        ... on WatchReady { path }
        ... on FileChange { kind changed: path fileKind movedFrom }
        ... on WatchOverflow { lost: path }
    } }";
    let mut events = Box::pin(world.subscribe(query, json!({"id": id})).await);
    assert_eq!(
        next_data(&mut events).await["watchDirectory"],
        json!({"__typename": "WatchReady", "path": "~/src"})
    );
    agent.tell_of_files(file_event::Event::Change(envd::FileChange {
        kind: envd::FileChangeKind::Moved.into(),
        path: "/root/src/b".into(),
        file_kind: envd::FileKind::File.into(),
        moved_from: Some("/root/src/a".into()),
    }));
    agent.tell_of_files(file_event::Event::Overflow(envd::WatchOverflow {}));
    assert_eq!(
        next_data(&mut events).await["watchDirectory"],
        json!({
            "__typename": "FileChange", "kind": "MOVED", "changed": "/root/src/b", "fileKind": "FILE",
            "movedFrom": "/root/src/a",
        })
    );
    assert_eq!(
        next_data(&mut events).await["watchDirectory"],
        json!({"__typename": "WatchOverflow", "lost": "~/src"})
    );
    agent.kill();
    let ended = Refused::of(&next(&mut events).await.expect("says why it ends").errors[0]);
    assert_eq!((ended.code.as_str(), ended.cause.as_deref()), ("UNAVAILABLE", Some("HOST_AGENT_LOST")));
    assert!(next(&mut events).await.is_none());
}

async fn caller(world: &World) -> Caller {
    let credentials = Credentials { api_key: Some(world.key.clone()), bearer: None };
    authenticate(&world.services, &credentials).await.expect("the key is accepted")
}

fn place(capsule: CapsuleId, path: &str) -> Place {
    Place { capsule: capsule.to_string(), path: path.to_owned(), user: None }
}

fn request_id() -> RequestId {
    RequestId("test-request".into())
}

async fn content_flows_both_ways(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let (caller, services) = (caller(world).await, &world.services);
    let options = WriteOptions { mode: Some(0o600), make_parents: true };
    let pieces = ["hello ", "", "world"].map(|text| Ok::<_, std::io::Error>(Bytes::from(text)));
    let made = transfer::write(
        services,
        &caller,
        &request_id(),
        place(id, "/no/such/f"),
        options,
        stream::iter(pieces),
    )
    .await
    .expect("is written");
    assert_eq!((made.path.as_str(), made.size.0, made.mode), ("/no/such/f", 11, 0o600));
    agent.with_files(|files| {
        assert_eq!(files.get("/no/such/f").as_deref(), Some(&b"hello world"[..]));
        assert_eq!(files.written, Some((Some(0o600), true, String::new())));
    });

    let read = async |path: &str, offset, length| {
        let reading = transfer::read(services, &caller, &request_id(), place(id, path), offset, length)
            .await
            .expect("opens");
        let content: Vec<Bytes> = reading.content.try_collect().await.expect("reads");
        (reading.entry.size.0, content.concat())
    };
    assert_eq!(read("/no/such/f", 0, None).await, (11, b"hello world".to_vec()));
    assert_eq!(read("/no/such/f", 6, Some(3)).await, (11, b"wor".to_vec()));
    assert_eq!(read("/no/such/f", 99, None).await, (11, Vec::new()));

    // What is larger than any message goes in pieces, and comes in pieces.
    let large = vec![7; 5 * 1024 * 1024 + 1];
    let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from(large.clone()))]);
    transfer::write(services, &caller, &request_id(), place(id, "/large"), WriteOptions::default(), body)
        .await
        .expect("is written");
    assert!(read("/large", 0, None).await.1 == large);

    for (capsule, path, options, code, field) in [
        (
            id,
            "/f",
            WriteOptions { mode: Some(0o10_000), make_parents: false },
            Code::InvalidInput,
            Some("mode"),
        ),
        (id, "", WriteOptions::default(), Code::InvalidInput, Some("path")),
        (id, "/no/such/f", WriteOptions::default(), Code::NotFound, Some("path")),
        (id, "/full", WriteOptions::default(), Code::ResourceExhausted, None),
        (CapsuleId::generate(), "/f", WriteOptions::default(), Code::NotFound, None),
    ] {
        let body = stream::empty::<Result<Bytes, std::io::Error>>();
        let error = transfer::write(services, &caller, &request_id(), place(capsule, path), options, body)
            .await
            .expect_err(path);
        assert_eq!((error.code(), error.field()), (code, field), "{path}: {error:?}");
    }
    for (path, code) in [("/none", Code::NotFound), ("", Code::InvalidInput)] {
        let opened = transfer::read(services, &caller, &request_id(), place(id, path), 0, None).await;
        let error = opened.err().expect(path);
        assert_eq!((error.code(), error.field()), (code, Some("path")));
    }
    let nobody = transfer::read(services, &Caller::Anonymous, &request_id(), place(id, "/f"), 0, None).await;
    assert_eq!(nobody.err().map(|error| error.code()), Some(Code::Unauthenticated));
}

async fn what_breaks_off_changes_nothing(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await;
    let (caller, services) = (caller(world).await, &world.services);
    agent.with_files(|files| {
        files.put("/f", "old");
        files.put(BROKEN, vec![0; 1024 * 1024]);
    });
    let pieces = [Ok(Bytes::from("new")), Err(std::io::Error::other("the client went away"))];
    let body = stream::iter(pieces);
    let error =
        transfer::write(services, &caller, &request_id(), place(id, "/f"), WriteOptions::default(), body)
            .await
            .expect_err("is not whole");
    assert!(error.to_string().contains("the client went away"), "{error}");
    assert_eq!(agent.with_files(|files| files.get("/f")).as_deref(), Some(&b"old"[..]));

    // What goes wrong in the middle of reading is told there, with its code.
    let reading =
        transfer::read(services, &caller, &request_id(), place(id, BROKEN), 0, None).await.expect("opens");
    let parts: Vec<_> = reading.content.collect().await;
    let error = parts.last().and_then(|part| part.as_ref().err()).expect("breaks off");
    assert_eq!(error.code(), Code::Unavailable);

    // Much more than fits anywhere on the way: whoever stops reading ends it.
    let zeros = format!("{ZEROS}{}", 1u64 << 40);
    let mut reading =
        transfer::read(services, &caller, &request_id(), place(id, &zeros), 0, None).await.expect("opens");
    assert!(reading.content.next().await.is_some_and(|part| part.is_ok()));
    drop(reading);
    let deadline = Instant::now() + PATIENCE;
    while agent.with_files(|files| files.readers()) > 0 {
        assert!(Instant::now() < deadline, "somebody still reads");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let body = stream::iter((0..256).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 256 * 1024]))));
    let made =
        transfer::write(services, &caller, &request_id(), place(id, NULL), WriteOptions::default(), body)
            .await
            .expect("is written");
    assert_eq!(made.size.0, 64 * 1024 * 1024);
}

async fn small_files_are_written(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let write = "mutation($id: ID!, $path: String!, $content: String!, $encoding: Encoding! = UTF8, $mode: Int,
        $parents: Boolean) { writeFile(capsuleId: $id, path: $path, content: $content, encoding: $encoding, mode: $mode,
        parents: $parents, user: \"root\") { entry { path size mode } } }";
    let written = world.ask(write, json!({"id": id, "path": "/f", "content": "hällo", "mode": 0o600})).await;
    assert_eq!(written["writeFile"]["entry"], json!({"path": "/f", "size": "6", "mode": 0o600}));
    let bytes =
        json!({"id": id, "path": "/no/such/f", "content": "/wA=", "encoding": "BASE64", "parents": true});
    world.ask(write, bytes).await;
    agent.with_files(|files| {
        assert_eq!(files.get("/f").as_deref(), Some("hällo".as_bytes()));
        assert_eq!(files.get("/no/such/f").as_deref(), Some(&[0xff, 0][..]));
        assert_eq!(files.written, Some((None, true, "root".to_owned())));
    });
    for (variables, field) in [
        (json!({"id": "cl-1", "path": "/f", "content": ""}), "capsuleId"),
        (json!({"id": id, "path": "", "content": ""}), "path"),
        (json!({"id": id, "path": "/f", "content": "?", "encoding": "BASE64"}), "content"),
        (json!({"id": id, "path": "/f", "content": "x".repeat(1024 * 1024 + 1)}), "content"),
        (json!({"id": id, "path": "/f", "content": "", "mode": -1}), "mode"),
    ] {
        assert_eq!(world.refused(write, variables).await.brief(), ("INVALID_INPUT", Some(field)));
    }
}

async fn urls_open_one_file_one_way(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let url = "mutation($id: ID!, $path: String!, $method: FileMethod!, $seconds: Int! = 300) {
        createFileUrl(capsuleId: $id, path: $path, method: $method, expiresInSec: $seconds) { url expiresAt } }";
    let made = world.ask(url, json!({"id": id, "path": "/a b", "method": "GET"})).await;
    let made = made["createFileUrl"]["url"].as_str().expect("a URL").to_owned();
    let (before, token) = made.split_once("&wrenn_token=").expect("is signed");
    assert_eq!(before, format!("http://127.0.0.1:8080/files/{id}?path=/a%20b"));
    let place = |path: &str| Place { capsule: id.clone(), path: path.into(), user: None };
    let signer = async |place, direction| {
        transfer::signer(&world.services, &place, direction, &token.into())
            .await
            .map_err(|error| error.code())
    };
    assert!(
        matches!(signer(place("/a b"), Direction::Read).await, Ok(Caller::Key(key)) if key.team_id == world.team)
    );
    for (place, direction) in [
        (place("/a b"), Direction::Write),
        (place("/a"), Direction::Read),
        (Place { user: Some("root".into()), ..place("/a b") }, Direction::Read),
        (Place { capsule: CapsuleId::generate().to_string(), ..place("/a b") }, Direction::Read),
    ] {
        assert_eq!(signer(place, direction).await.err(), Some(Code::Unauthenticated));
    }
    for (variables, code, field) in [
        (json!({"id": id, "path": "", "method": "GET"}), "INVALID_INPUT", Some("path")),
        (
            json!({"id": id, "path": "/a", "method": "PUT", "seconds": 0}),
            "INVALID_INPUT",
            Some("expiresInSec"),
        ),
        (json!({"id": CapsuleId::generate().to_string(), "path": "/a", "method": "PUT"}), "NOT_FOUND", None),
    ] {
        assert_eq!(world.refused(url, variables).await.brief(), (code, field));
    }
}
