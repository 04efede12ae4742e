//! Files: listing and changing them through GraphQL, their content through HTTP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_tests::graphql::{Exec, Failure, ProcessEvent};
use wrenn_tests::procfs;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// Content that goes up and down: more than any buffer between holds.
const LARGE: usize = 48 * 1024 * 1024;

pub async fn directories_are_made_listed_moved_and_removed(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let made = client.make_dir(&id, "/srv/a/b/c", None).await?;
    ensure!(made.path == "/srv/a/b/c" && made.name == "c" && made.kind == "DIRECTORY", "{made:?}");
    ensure!(client.make_dir(&id, "/srv/a/b/c", None).await?.path == made.path, "one that is there is fine");
    client
        .sh(
            &id,
            "cd /srv/a; printf 12345 > file; chmod 640 file; chown nobody file; ln -s file link; mkfifo pipe",
        )
        .await?;

    let listed = client.files(&id, "/srv/a", 1).await?;
    let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
    ensure!(names == ["b", "file", "link", "pipe"], "{names:?}");
    let kinds: Vec<&str> = listed.iter().map(|entry| entry.kind.as_str()).collect();
    ensure!(kinds == ["DIRECTORY", "FILE", "SYMLINK", "OTHER"], "{kinds:?}");
    let file = &listed[1];
    ensure!(file.size()? == 5 && file.mode == 0o640 && file.owner == "nobody", "{file:?}");
    ensure!(listed[2].symlink_target.as_deref() == Some("file"), "{:?}", listed[2]);
    let deeper = client.files(&id, "/srv/a", 2).await?;
    let below = deeper[0].children.as_ref().context("a directory within the depth has children")?;
    ensure!(below.len() == 1 && below[0].path == "/srv/a/b/c", "{below:?}");

    let moved = client.move_path(&id, "/srv/a/file", "/srv/a/b/renamed").await?;
    ensure!(moved.path == "/srv/a/b/renamed" && moved.size()? == 5, "{moved:?}");
    ensure!(client.sh(&id, "cat /srv/a/b/renamed; ls /srv/a").await? == "12345b\nlink\npipe");
    for _ in 0..2 {
        client.remove_path(&id, "/srv/a", None).await?;
    }
    ensure!(client.sh(&id, "ls /srv").await?.is_empty(), "what was removed is still there");
    client.destroy(&id).await?;
    Ok(())
}

/// In order, as nothing is left to tell of.
pub async fn a_watch_ends_with_its_directory(stack: Arc<Stack>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.make_dir(&id, "/srv/watched", None).await?;
    let query = "subscription($id: ID!) { watchDirectory(capsuleId: $id, path: \"/srv/watched\") {
        __typename ... on FileChange { kind } } }";
    let mut watch = client.subscribe(query, json!({ "id": id })).await?;
    let ready = watch.next_within(PATIENCE).await?.context("it is ready")?;
    ensure!(ready["watchDirectory"]["__typename"] == "WatchReady", "{ready}");
    client.remove_path(&id, "/srv/watched", None).await?;
    let removed = watch.next_within(PATIENCE).await?.context("the removal is told")?;
    ensure!(removed["watchDirectory"]["kind"] == "REMOVED", "{removed}");
    let end = watch.next_within(PATIENCE).await?;
    ensure!(end.is_none(), "{end:?}");
    client.destroy(&id).await?;
    Ok(())
}

/// Every mistake has a code that says of which kind it is.
pub async fn mistakes_are_named(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client
        .sh(&id, "mkdir -p /srv/full/inner /srv/other; echo x > /srv/file; mkdir -m 700 /srv/private")
        .await?;
    let nobody = Some("nobody");
    let cases = [
        ("a missing directory", client.files(&id, "/srv/missing", 1).await.err(), "NOT_FOUND"),
        ("a file as a directory", client.files(&id, "/srv/file", 1).await.err(), "FAILED_PRECONDITION"),
        ("through a file", client.make_dir(&id, "/srv/file/below", None).await.err(), "FAILED_PRECONDITION"),
        ("in the way", client.make_dir(&id, "/srv/file", None).await.err(), "CONFLICT"),
        ("moving what is not there", client.move_path(&id, "/srv/none", "/srv/x").await.err(), "NOT_FOUND"),
        ("onto a directory", client.move_path(&id, "/srv/file", "/srv/full").await.err(), "CONFLICT"),
        ("not allowed", client.make_dir(&id, "/srv/private/mine", nobody).await.err(), "FORBIDDEN"),
        ("not allowed either", client.remove_path(&id, "/srv/file", nobody).await.err(), "FORBIDDEN"),
    ];
    for (what, error, code) in cases {
        let refused = error.with_context(|| format!("{what} was let through"))?.downcast::<Failure>()?;
        ensure!(refused.first().code() == code, "{what}: {refused}");
    }
    let fields = [
        (client.files(&id, "", 1).await.err(), "path"),
        (client.files(&id, "/", 0).await.err(), "depth"),
        (client.files(&id, "/", 1000).await.err(), "depth"),
        (client.make_dir(&id, "/srv/x\0y", None).await.err(), "path"),
        (client.move_path(&id, "", "/srv/x").await.err(), "from"),
        (client.move_path(&id, "/srv/file", "").await.err(), "to"),
        (client.make_dir(&id, "/srv/x", Some("no-such-user")).await.err(), "user"),
    ];
    for (error, field) in fields {
        let refused =
            error.with_context(|| format!("a wrong {field} was let through"))?.downcast::<Failure>()?;
        ensure!(refused.first().code() == "INVALID_INPUT", "{field}: {refused}");
        ensure!(refused.first().field() == Some(field), "{field}: {refused}");
    }
    let foreign = stack.platform().make_dir(&id, "/srv/x", None).await.err().context("another team's")?;
    ensure!(Failure::code_of(&foreign) == Some("NOT_FOUND"), "{foreign:#}");
    let left = client.sh(&id, "ls /srv; cat /srv/file").await?;
    ensure!(left == "file\nfull\nother\nprivate\nx", "refused requests changed something: {left}");
    client.pause(&id).await?;
    let paused = client.make_dir(&id, "/srv/x", None).await.err().context("in a paused capsule")?;
    ensure!(Failure::code_of(&paused) == Some("FAILED_PRECONDITION"), "{paused:#}");
    client.destroy(&id).await?;
    Ok(())
}

/// What goes up comes down, byte for byte, in pieces too; a file is replaced as a whole.
pub async fn content_goes_up_and_down(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let content = noise(LARGE);
    let expected = hex(&Sha256::digest(&content));
    client.upload(&id, "/root/large", content.clone()).await?;
    let inside = client.sh(&id, "sha256sum /root/large").await?;
    ensure!(inside.starts_with(&expected), "{inside} where {expected} was sent");
    let back = client.download(&id, "/root/large").await?;
    ensure!(back == content, "{} bytes came back, not those that went up", back.len());

    let (from, to) = (LARGE / 3, LARGE / 3 + 99_999);
    let part = client.file_request(Method::GET, &id, "/root/large")?;
    let part = part.header("Range", format!("bytes={from}-{to}")).send().await?;
    ensure!(part.status() == StatusCode::PARTIAL_CONTENT, "{}", part.status());
    ensure!(part.bytes().await? == content[from..=to], "another part than was asked for");

    client.upload(&id, "large", b"short".to_vec()).await?;
    ensure!(
        client.sh(&id, "cat /root/large; ls /root").await? == "shortlarge",
        "a path is relative to the home; replaced, and nothing beside it"
    );
    client.upload(&id, "/root/empty", Vec::new()).await?;
    ensure!(client.download(&id, "/root/empty").await?.is_empty());

    // Only regular files, only of those who may, and only what is there.
    client.sh(&id, "mkfifo /root/pipe").await?;
    for (path, key, code) in [
        ("/root/missing", client.key(), "NOT_FOUND"),
        ("/root/pipe", client.key(), "FAILED_PRECONDITION"),
        ("/root", client.key(), "FAILED_PRECONDITION"),
        ("/root/large", stack.platform().key(), "NOT_FOUND"),
        ("/root/large", None, "UNAUTHENTICATED"),
    ] {
        let answer = client.with_key(key).file_request(Method::GET, &id, path)?.send().await?;
        let status = answer.status();
        let said = answer.text().await?;
        ensure!(status.is_client_error() && said.contains(code), "{path}: {status}: {said}, not {code}");
    }
    client.destroy(&id).await?;
    Ok(())
}

/// Through all of it, with the same hash at both ends and in the guest, and nothing held as a whole on the way.
pub async fn a_gibibyte_goes_up_and_down_in_flat_memory(stack: Arc<Stack>) -> Result<()> {
    const GIB: usize = 1 << 30;
    /// How much a process may have grown while a gibibyte went through it.
    const GROWTH_KIB: u64 = 48 * 1024;
    let client = stack.client();
    let id = client.create(json!({ "diskMib": 3072 })).await?.id;
    // Different blocks, so that one lost, doubled or out of order is seen.
    let block = noise(1 << 20);
    let mut expected = Sha256::new();
    for number in 0..GIB >> 20 {
        expected.update(numbered(&block, number));
    }
    let expected = hex(&expected.finalize());

    let (api, agent) = (stack.api_pid()?, stack.host().pid()?);
    let resident = || -> Result<[u64; 2]> {
        let of = |pid| procfs::resident_kib(pid).context("the process is gone");
        Ok([of(api)?, of(agent)?])
    };
    let before = resident()?;
    let flat = |what: &str| -> Result<()> {
        for (now, before) in resident()?.into_iter().zip(before) {
            ensure!(now < before + GROWTH_KIB, "{what}: from {before} to {now} KiB");
        }
        Ok(())
    };

    let blocks = (0..GIB >> 20).map({
        let block = block.clone();
        move |number| Ok::<_, std::io::Error>(numbered(&block, number))
    });
    let put = client.file_request(Method::PUT, &id, "/root/large")?.timeout(LONG);
    let body = reqwest::Body::wrap_stream(stream::iter(blocks));
    let mut sending = std::pin::pin!(put.body(body).send());
    let answer = loop {
        tokio::select! {
            answer = &mut sending => break answer?,
            () = tokio::time::sleep(Duration::from_millis(200)) => flat("up")?,
        }
    };
    ensure!(answer.status().is_success(), "{}: {}", answer.status(), answer.text().await?);
    // For longer than a request may take.
    let mut inside = client.exec_stream(Exec::argv(&id, &["sha256sum", "/root/large"])).await?;
    let inside = inside.collect(LONG).await?;
    let well = ProcessEvent::Exited { exit_code: Some(0), signal: None, cause: None };
    ensure!(inside.exit == Some(well), "{inside:?}");
    ensure!(inside.stdout.starts_with(expected.as_bytes()), "{inside:?} where {expected} was sent");

    let get = client.file_request(Method::GET, &id, "/root/large")?.timeout(LONG).send().await?;
    let mut content = get.bytes_stream();
    let (mut hash, mut length) = (Sha256::new(), 0);
    while let Some(chunk) = content.next().await {
        let chunk = chunk?;
        hash.update(&chunk);
        let looked_at = length >> 24;
        length += chunk.len();
        if length >> 24 != looked_at {
            flat("down")?;
        }
    }
    ensure!((length, hex(&hash.finalize())) == (GIB, expected), "{length} bytes came back, or other ones");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn an_aborted_download_ends_the_reading_in_the_guest(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "head -c 64M /dev/zero > /root/large").await?;
    let readers = "find /proc/[0-9]*/fd -lname /root/large 2>/dev/null | wc -l";
    let mut content = client.file_request(Method::GET, &id, "/root/large")?.send().await?.bytes_stream();
    content.next().await.context("nothing came")??;
    ensure!(client.sh(&id, readers).await?.trim() == "1", "it is not read");
    drop(content);
    wait::until_true("the end of the reading", Duration::from_secs(30), async || {
        Ok(client.sh(&id, readers).await?.trim() == "0")
    })
    .await?;
    client.destroy(&id).await?;
    Ok(())
}

pub async fn signed_urls_open_one_file(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let (read, write) =
        (client.file_url(&id, "/root/a b", "GET").await?, client.file_url(&id, "/root/a b", "PUT").await?);
    ensure!(http.put(&write).body("signed").send().await?.status() == StatusCode::OK);
    ensure!(http.get(&read).send().await?.text().await? == "signed");
    for wrong in
        [http.put(&read).body("x"), http.get(&write), http.get(read.replace("path=/root/a", "path=/etc/a"))]
    {
        ensure!(wrong.send().await?.status() == StatusCode::UNAUTHORIZED);
    }
    client.destroy(&id).await?;
    Ok(())
}

/// For a gibibyte on a slow machine.
const LONG: Duration = Duration::from_secs(600);

fn numbered(block: &[u8], number: usize) -> Vec<u8> {
    let mut block = block.to_vec();
    block[..8].copy_from_slice(&(number as u64).to_le_bytes());
    block
}

/// Bytes that no compression and no pattern helps with (xorshift, Marsaglia 2003).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| word()).take(length).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
