//! What changes below a directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::file_event::Event;

use crate::files::room;
use crate::stand::{Client, DEADLINE, Stand, field, until, with_token};

struct Watcher {
    events: Streaming<pb::FileEvent>,
    top: String,
}

async fn watch(client: &mut Client, path: &Path, user: &str, recursive: bool) -> Result<Watcher, Status> {
    let top = path.to_str().expect("text").to_owned();
    let request = pb::WatchRequest { path: top.clone(), user: user.into(), recursive };
    let events = client.files.watch(with_token(request)).await?.into_inner();
    let mut watcher = Watcher { events, top };
    assert_eq!(watcher.next().await.as_deref(), Some("ready"));
    Ok(watcher)
}

impl Watcher {
    /// The next event on one line, with paths from the top; nothing at the end.
    async fn next(&mut self) -> Option<String> {
        let message = timeout(DEADLINE, self.events.message()).await.expect("an event in time");
        let below = |path: &str| path.strip_prefix(&self.top).expect("below the top").to_owned();
        Some(match message.expect("an event")?.event.expect("an event") {
            Event::Ready(_) => "ready".to_owned(),
            Event::Overflow(_) => "overflow".to_owned(),
            Event::Change(change) => {
                let slash = if change.file_kind() == pb::FileKind::Directory { "/" } else { "" };
                let kind = change.kind().as_str_name().trim_start_matches("FILE_CHANGE_KIND_").to_lowercase();
                let from = change.moved_from.as_deref().map(|it| format!(" from {}", below(it)));
                format!("{kind} {}{slash}{}", below(&change.path), from.unwrap_or_default())
            }
        })
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await.as_deref(), Some(*expected));
        }
    }

    /// Until this is told; whether anything was told twice.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let event = self.next().await.expect("not the end");
            told.push(event.clone());
            if event == last {
                return told;
            }
        }
    }
}

#[tokio::test]
async fn each_change_is_told_once() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let at = |name: &str| room.path().join(name);
    fs::create_dir(at("old")).expect("mkdir");
    let outside = crate::files::room();
    let mut watcher = watch(&mut client, room.path(), "", true).await.expect("watch");

    fs::write(at("old/a"), "1").expect("write");
    watcher.expect(&["created /old/a", "modified /old/a"]).await;
    fs::rename(at("old/a"), at("b")).expect("rename");
    watcher.expect(&["moved /b from /old/a"]).await;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(at("b"), mode).expect("chmod");
    watcher.expect(&["attributes /b"]).await;
    fs::rename(at("b"), outside.path().join("b")).expect("rename");
    watcher.expect(&["removed /b"]).await;
    fs::rename(outside.path().join("b"), at("c")).expect("rename");
    watcher.expect(&["created /c"]).await;
    symlink("c", at("link")).expect("symlink");
    fs::remove_file(at("c")).expect("remove");
    watcher.expect(&["created /link", "removed /c"]).await;

    // A directory that comes later, its name that changes, and one that goes.
    fs::create_dir(at("new")).expect("mkdir");
    watcher.expect(&["created /new/"]).await;
    fs::rename(at("new"), at("old/new")).expect("rename");
    watcher.expect(&["moved /old/new/ from /new"]).await;
    fs::rename(at("old"), at("young")).expect("rename");
    watcher.expect(&["moved /young/ from /old"]).await;
    fs::create_dir(at("young/new/deep")).expect("mkdir");
    watcher.expect(&["created /young/new/deep/"]).await;
    fs::rename(at("young"), outside.path().join("young")).expect("rename");
    watcher.expect(&["removed /young/"]).await;
    fs::write(outside.path().join("young/new/deep/unseen"), "").expect("write");
    fs::write(at("last"), "").expect("write");
    watcher.expect(&["created /last"]).await;

    // The watch ends with its directory.
    fs::remove_file(at("last")).expect("remove");
    fs::remove_file(at("link")).expect("remove");
    fs::remove_dir(room.path()).expect("remove");
    watcher.expect(&["removed /last", "removed /link", "removed /"]).await;
    assert_eq!(watcher.next().await, None);
}

#[tokio::test]
async fn what_is_made_at_once_in_a_new_directory_is_told() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let mut watcher = watch(&mut client, room.path(), "", true).await.expect("watch");
    for round in 0..20 {
        let deep = room.path().join(format!("{round}/x/y/z"));
        fs::create_dir_all(&deep).expect("mkdir");
        fs::write(deep.join("file"), "").expect("write");
        let told = watcher.until(&format!("created /{round}/x/y/z/file")).await;
        let made = ["", "/x", "/x/y", "/x/y/z"].map(|it| format!("created /{round}{it}/"));
        assert_eq!(told[..told.len() - 1], made);
    }
}

#[tokio::test]
async fn only_the_directory_itself_unless_asked() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    fs::create_dir(room.path().join("in")).expect("mkdir");
    let mut watcher = watch(&mut client, room.path(), "", false).await.expect("watch");
    fs::write(room.path().join("in/unseen"), "").expect("write");
    fs::create_dir(room.path().join("new")).expect("mkdir");
    fs::write(room.path().join("new/unseen"), "").expect("write");
    fs::write(room.path().join("seen"), "").expect("write");
    watcher.expect(&["created /new/", "created /seen"]).await;
}

#[tokio::test]
async fn a_write_is_seen_when_it_is_whole() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let mut watcher = watch(&mut client, room.path(), "", true).await.expect("watch");
    let path = room.path().join("file").to_str().expect("text").to_owned();
    let start = pb::WriteStart { path, ..Default::default() };
    client.write_file(start, b"content").await.expect("write");
    fs::create_dir(room.path().join("next")).expect("mkdir");
    watcher.expect(&["created /file", "created /next/"]).await;
}

#[tokio::test]
async fn a_watch_is_its_user_s() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let closed = room.path().join("closed");
    fs::create_dir(&closed).expect("mkdir");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    let refused = watch(&mut client, &closed, "nobody", true).await.err().expect("must be refused");
    assert_eq!((refused.code(), field(&refused)), (Code::PermissionDenied, Some("path")));
    let mut watcher = watch(&mut client, room.path(), "nobody", true).await.expect("watch");
    fs::write(closed.join("unseen"), "").expect("write");
    fs::write(room.path().join("seen"), "").expect("write");
    watcher.expect(&["created /seen"]).await;
    let file = watch(&mut client, &room.path().join("seen"), "", true).await.err().expect("no directory");
    assert_eq!((file.code(), field(&file)), (Code::FailedPrecondition, Some("path")));
}

#[tokio::test]
async fn a_reader_that_is_slow_is_told_of_the_overflow() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    fs::create_dir(room.path().join("dir")).expect("mkdir");
    let mut watcher = watch(&mut client, room.path(), "", true).await.expect("watch");
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("the kernel's limit");
    let limit: usize = limit.trim().parse().expect("a number");
    // Far more than the kernel's queue and every window between, of which each event fills some 100 bytes.
    let rounds = limit + 40_000;
    let busy = room.path().join("dir");
    tokio::task::spawn_blocking(move || {
        for round in 0..rounds {
            let name = busy.join(format!("{}{}", "x".repeat(100), round % 2));
            fs::write(&name, "").expect("write");
            fs::remove_file(&name).expect("remove");
        }
    })
    .await
    .expect("the changes");
    watcher.until("overflow").await;
    // From then on everything is told again, also of directories that were made while nothing was.
    fs::create_dir(room.path().join("dir/after")).expect("mkdir");
    watcher.until("created /dir/after/").await;
    fs::write(room.path().join("dir/after/all"), "").expect("write");
    watcher.until("created /dir/after/all").await;
}

#[tokio::test]
async fn a_watch_ends_with_its_reader() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let mut watchers = Vec::new();
    let refused = loop {
        match watch(&mut client, room.path(), "", true).await {
            Ok(watcher) => watchers.push(watcher),
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused.code(), watchers.len()), (Code::ResourceExhausted, 32));
    watchers.pop();
    until("there is room for one more", async || watch(&mut client, room.path(), "", true).await.ok()).await;
}
