//! Files: as whom, and what is left when something goes wrong.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tonic::{Code, Status};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::FileKind;
use wrenn_proto::envd::v1::content_answer::What as Answer;
use wrenn_proto::envd::v1::content_request::What as Asked;

use crate::content::Wire;
use crate::stand::{Client, DEADLINE, Stand, field, until, with_token};

const NOBODY: u32 = 65534;
const ROOT: &str = "";

/// A directory that everybody may enter.
pub fn room() -> tempfile::TempDir {
    let room = tempfile::tempdir().expect("a directory");
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    room
}

/// One of nobody's own in it.
fn nobody_s(room: &tempfile::TempDir) -> PathBuf {
    let own = room.path().join("own");
    fs::create_dir(&own).expect("mkdir");
    chown(&own, Some(NOBODY), Some(NOBODY)).expect("needs root");
    own
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

fn start(path: &Path, user: &str) -> pb::WriteStart {
    pb::WriteStart { path: text(path), user: user.into(), mode: None, make_parents: false }
}

impl Client {
    pub async fn stat(&mut self, path: &Path, user: &str) -> Result<pb::FileEntry, Status> {
        let request = pb::StatRequest { path: text(path), user: user.into() };
        Ok(self.files.stat(with_token(request)).await?.into_inner().entry.expect("an entry"))
    }

    async fn ls(&mut self, path: &Path, user: &str, depth: u32) -> Result<Vec<pb::FileEntry>, Status> {
        let request = pb::ListDirectoryRequest { path: text(path), user: user.into(), depth };
        Ok(self.files.list_directory(with_token(request)).await?.into_inner().entries)
    }

    async fn mkdir(&mut self, path: &Path, user: &str) -> Result<pb::FileEntry, Status> {
        let request = pb::MakeDirectoryRequest { path: text(path), user: user.into() };
        Ok(self.files.make_directory(with_token(request)).await?.into_inner().entry.expect("an entry"))
    }

    async fn mv(&mut self, from: &Path, to: &Path, user: &str) -> Result<pb::FileEntry, Status> {
        let request = pb::MoveRequest { from: text(from), to: text(to), user: user.into() };
        Ok(self.files.r#move(with_token(request)).await?.into_inner().entry.expect("an entry"))
    }

    async fn rm(&mut self, path: &Path, user: &str) -> Result<(), Status> {
        let request = pb::RemoveRequest { path: text(path), user: user.into() };
        self.files.remove(with_token(request)).await.map(drop)
    }

    pub async fn cat(&mut self, request: pb::ReadRequest) -> Result<(pb::FileEntry, Vec<u8>), Status> {
        let mut wire = Wire::open(self.address).await;
        let Answer::Entry(entry) = wire.ask(Asked::Read(request)).await? else { panic!("no entry first") };
        Ok((entry, wire.rest().await?))
    }

    pub async fn write_file(
        &mut self,
        start: pb::WriteStart,
        content: &[u8],
    ) -> Result<pb::FileEntry, Status> {
        let mut wire = Wire::open(self.address).await;
        let Answer::Ready(_) = wire.ask(Asked::Write(start)).await? else { panic!("not ready") };
        for piece in content.chunks(64 * 1024) {
            wire.send(piece).await;
        }
        wire.end().await
    }
}

fn whole(path: &Path, user: &str) -> pb::ReadRequest {
    pb::ReadRequest { path: text(path), user: user.into(), offset: 0, length: None }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, Option<String>) {
    let status = result.expect_err("must be refused");
    (status.code(), field(&status).map(str::to_owned))
}

fn at(code: Code, field: &str) -> (Code, Option<String>) {
    (code, Some(field.to_owned()))
}

#[tokio::test]
async fn an_entry_tells_all() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let file = room.path().join("file");
    fs::write(&file, "12345").expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).expect("chmod");
    chown(&file, Some(NOBODY), Some(4711)).expect("needs root");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).expect("chmod");
    let told = client.stat(&file, ROOT).await.expect("stat");
    let metadata = fs::metadata(&file).expect("metadata");
    let expected = pb::FileEntry {
        name: "file".into(),
        path: text(&file),
        kind: FileKind::File.into(),
        size: 5,
        mode: 0o4751,
        owner: "nobody".into(),
        group: "4711".into(),
        modified_at_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        symlink_target: None,
        children: vec![],
    };
    assert_eq!(told, expected);

    symlink("file", room.path().join("link")).expect("symlink");
    let link = client.stat(&room.path().join("link"), ROOT).await.expect("stat");
    assert_eq!((link.kind(), link.symlink_target.as_deref()), (FileKind::Symlink, Some("file")));
    assert_eq!(client.stat(Path::new("/dev/null"), ROOT).await.expect("stat").kind(), FileKind::Other);
    assert_eq!(client.stat(Path::new("/"), ROOT).await.expect("stat").kind(), FileKind::Directory);
    // Relative to the user's home.
    assert_eq!(client.stat(Path::new("."), "root").await.expect("stat").path, "/root");
}

#[tokio::test]
async fn each_error_has_its_code_and_names_its_field() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let (file, none) = (room.path().join("file"), room.path().join("none"));
    fs::write(&file, "").expect("write");
    fs::write(room.path().join("other"), "").expect("write");
    fs::create_dir(room.path().join("dir")).expect("mkdir");
    let dir = room.path().join("dir");

    assert_eq!(refused(client.stat(&none, ROOT).await), at(Code::NotFound, "path"));
    assert_eq!(refused(client.stat(&file.join("x"), ROOT).await), at(Code::FailedPrecondition, "path"));
    assert_eq!(refused(client.stat(Path::new(""), ROOT).await), at(Code::InvalidArgument, "path"));
    assert_eq!(refused(client.stat(Path::new("a\0b"), ROOT).await), at(Code::InvalidArgument, "path"));
    assert_eq!(refused(client.stat(&file, "no-such-user").await), at(Code::InvalidArgument, "user"));
    assert_eq!(refused(client.ls(&file, ROOT, 1).await), at(Code::FailedPrecondition, "path"));
    assert_eq!(refused(client.ls(&dir, ROOT, 17).await), at(Code::InvalidArgument, "depth"));
    assert_eq!(refused(client.mkdir(&file, ROOT).await), at(Code::AlreadyExists, "path"));
    assert_eq!(refused(client.mkdir(&file.join("x"), ROOT).await), at(Code::FailedPrecondition, "path"));
    assert_eq!(refused(client.mv(&none, &dir, ROOT).await), at(Code::NotFound, "from"));
    assert_eq!(refused(client.mv(&file, &none.join("x"), ROOT).await), at(Code::NotFound, "to"));
    assert_eq!(refused(client.mv(&file, &dir, ROOT).await), at(Code::AlreadyExists, "to"));
    assert_eq!(refused(client.mv(&dir, &file, ROOT).await), at(Code::AlreadyExists, "to"));
    assert_eq!(refused(client.mv(&dir, &dir.join("x"), ROOT).await), at(Code::InvalidArgument, "to"));
    assert_eq!(refused(client.rm(Path::new("/"), ROOT).await), at(Code::InvalidArgument, "path"));
    assert_eq!(refused(client.rm(&dir.join(".."), ROOT).await), at(Code::InvalidArgument, "path"));
    assert_eq!(refused(client.cat(whole(&none, ROOT)).await), at(Code::NotFound, "path"));
    assert_eq!(refused(client.cat(whole(&dir, ROOT)).await), at(Code::FailedPrecondition, "path"));
    assert_eq!(
        refused(client.write_file(start(&dir, ROOT), b"").await),
        at(Code::FailedPrecondition, "path")
    );
    let lost = none.join("x");
    assert_eq!(refused(client.write_file(start(&lost, ROOT), b"").await), at(Code::NotFound, "path"));
    let mode = pb::WriteStart { mode: Some(0o10_000), ..start(&file, ROOT) };
    assert_eq!(refused(client.write_file(mode, b"").await), at(Code::InvalidArgument, "mode"));
    assert_eq!(fs::read_dir(room.path()).expect("list").count(), 3, "nothing was made");
}

#[tokio::test]
async fn only_regular_files_are_opened_and_nothing_waits() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let pipe = room.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    symlink(&pipe, room.path().join("link")).expect("symlink");
    for special in [pipe.as_path(), &room.path().join("link"), Path::new("/dev/zero"), Path::new("/dev/tty")]
    {
        let read = timeout(DEADLINE, client.cat(whole(special, ROOT))).await.expect("does not wait");
        assert_eq!(refused(read), at(Code::FailedPrecondition, "path"), "{special:?}");
        let write = client.write_file(start(special, ROOT), b"x");
        let write = timeout(DEADLINE, write).await.expect("does not wait");
        assert_eq!(refused(write), at(Code::FailedPrecondition, "path"), "{special:?}");
    }
    // Files of /proc say that they are empty.
    let (_, content) = client.cat(whole(Path::new("/proc/self/stat"), ROOT)).await.expect("read");
    assert!(!content.is_empty());
}

#[tokio::test]
async fn every_call_is_made_as_its_user() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let own = nobody_s(&room);
    let (secret, closed) = (room.path().join("secret"), room.path().join("closed"));
    fs::write(&secret, "root's").expect("write");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::create_dir(&closed).expect("mkdir");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
    let denied = |field| at(Code::PermissionDenied, field);

    assert!(client.stat(&secret, "nobody").await.is_ok(), "its directory may be entered");
    assert_eq!(refused(client.cat(whole(&secret, "nobody")).await), denied("path"));
    assert_eq!(refused(client.stat(&closed.join("x"), "nobody").await), denied("path"));
    assert_eq!(refused(client.ls(&closed, "nobody", 1).await), denied("path"));
    assert_eq!(refused(client.mkdir(&room.path().join("a/b"), "nobody").await), denied("path"));
    assert_eq!(refused(client.rm(&secret, "nobody").await), denied("path"));
    assert_eq!(refused(client.rm(&closed, "nobody").await), denied("path"));
    assert_eq!(refused(client.mv(&secret, &own.join("x"), "nobody").await), denied("from"));
    assert_eq!(refused(client.write_file(start(&secret, "nobody"), b"x").await), denied("path"));
    let beside = room.path().join("new");
    assert_eq!(refused(client.write_file(start(&beside, "nobody"), b"x").await), denied("path"));
    // A link of one's own opens no door.
    symlink(&secret, own.join("link")).expect("symlink");
    assert_eq!(refused(client.cat(whole(&own.join("link"), "nobody")).await), denied("path"));
    assert_eq!(refused(client.write_file(start(&own.join("link"), "nobody"), b"x").await), denied("path"));
    // Nor does a file of root's in a directory of one's own, which could be renamed over.
    fs::write(own.join("root-s"), "root's").expect("write");
    assert_eq!(refused(client.write_file(start(&own.join("root-s"), "nobody"), b"x").await), denied("path"));
    let through = PathBuf::from(format!("{}/../closed/x", own.display()));
    assert_eq!(refused(client.stat(&through, "nobody").await), denied("path"));

    // What is listed is seen as deep as it may be.
    let entries = client.ls(room.path(), "nobody", 2).await.expect("list");
    let names: Vec<_> = entries.iter().map(|it| (it.name.as_str(), it.children.len())).collect();
    assert_eq!(names, [("closed", 0), ("own", 2), ("secret", 0)]);

    // What is made belongs to the user.
    let made = client.mkdir(&own.join("a/b"), "65534").await.expect("mkdir");
    assert_eq!((made.owner.as_str(), made.mode, made.kind()), ("nobody", 0o755, FileKind::Directory));
    let written = client.write_file(start(&own.join("a/b/c"), "nobody"), b"own").await.expect("write");
    assert_eq!((written.owner.as_str(), written.mode, written.size), ("nobody", 0o644, 3));
    assert_eq!(fs::metadata(own.join("a/b/c")).expect("metadata").uid(), NOBODY);
    // And envd is root as before.
    assert_eq!(client.cat(whole(&secret, ROOT)).await.expect("read").1, b"root's");
    client.rm(&own, "nobody").await.expect_err("the directory around is root's");
    client.rm(&own, ROOT).await.expect("remove");
    assert!(!own.exists());
}

#[tokio::test]
async fn a_listing_goes_as_deep_as_it_is_asked() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    fs::create_dir_all(room.path().join("b/c/d")).expect("mkdir");
    fs::write(room.path().join("a"), "").expect("write");
    fs::write(room.path().join("b/z"), "").expect("write");
    symlink("b", room.path().join("round")).expect("symlink");
    use std::os::unix::ffi::OsStrExt;
    let odd = room.path().join(std::ffi::OsStr::from_bytes(b"odd\xff\xfe"));
    fs::write(odd, "").expect("a name that is not UTF-8");

    fn shape(entries: &[pb::FileEntry]) -> String {
        let one = |it: &pb::FileEntry| match it.children.as_slice() {
            [] => it.name.clone(),
            children => format!("{}({})", it.name, shape(children)),
        };
        entries.iter().map(one).collect::<Vec<_>>().join(" ")
    }
    let mut shape_at = async |depth| shape(&client.ls(room.path(), ROOT, depth).await.expect("list"));
    assert_eq!(shape_at(0).await, "a b odd\u{fffd}\u{fffd} round");
    assert_eq!(shape_at(1).await, shape_at(0).await);
    assert_eq!(shape_at(2).await, "a b(c z) odd\u{fffd}\u{fffd} round");
    assert_eq!(shape_at(16).await, "a b(c(d) z) odd\u{fffd}\u{fffd} round");

    let many = room.path().join("many");
    fs::create_dir(&many).expect("mkdir");
    for number in 0..10_001 {
        fs::write(many.join(number.to_string()), "").expect("write");
    }
    assert_eq!(refused(client.ls(&many, ROOT, 1).await), at(Code::ResourceExhausted, "path"));
    fs::remove_file(many.join("0")).expect("remove");
    assert_eq!(client.ls(&many, ROOT, 1).await.expect("as many as may be").len(), 10_000);
    client.rm(&many, ROOT).await.expect("remove");
    assert!(!many.exists());
}

#[tokio::test]
async fn directories_are_made_and_entries_moved() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let deep = room.path().join("a/b/c");
    for _ in 0..2 {
        assert_eq!(client.mkdir(&deep, ROOT).await.expect("made, or there already").path, text(&deep));
    }
    symlink("nowhere", room.path().join("dangling")).expect("symlink");
    let dangling = client.mkdir(&room.path().join("dangling"), ROOT).await;
    assert_eq!(refused(dangling), at(Code::AlreadyExists, "path"));

    let (one, other) = (room.path().join("one"), room.path().join("other"));
    fs::write(&one, "1").expect("write");
    fs::write(&other, "2").expect("write");
    assert_eq!(client.mv(&one, &other, ROOT).await.expect("replaces a file").size, 1);
    assert!(!one.exists());
    client.mv(&other, &deep.join("file"), ROOT).await.expect("into a directory, by its name");
    let moved = client.mv(&room.path().join("a"), &room.path().join("z"), ROOT).await.expect("a directory");
    assert_eq!(moved.kind(), FileKind::Directory);
    assert_eq!(fs::read_to_string(room.path().join("z/b/c/file")).expect("read"), "1");
    fs::create_dir(room.path().join("empty")).expect("mkdir");
    let over = client.mv(&room.path().join("z"), &room.path().join("empty"), ROOT).await;
    assert_eq!(refused(over), at(Code::AlreadyExists, "to"), "not even an empty directory is replaced");
}

#[tokio::test]
async fn a_removal_takes_all_and_follows_nothing() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let (tree, kept) = (room.path().join("tree"), room.path().join("kept"));
    fs::create_dir_all(kept.join("inner")).expect("mkdir");
    fs::write(kept.join("file"), "").expect("write");
    fs::create_dir_all(tree.join("x/y")).expect("mkdir");
    fs::write(tree.join("x/y/file"), "").expect("write");
    symlink(&kept, tree.join("x/link")).expect("symlink");
    symlink(&kept, tree.join("link")).expect("symlink");
    // Deeper than any path, and than there are descriptors.
    let mut deep =
        nix::fcntl::open(&tree, nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty()).expect("open");
    for _ in 0..3000 {
        nix::sys::stat::mkdirat(&deep, "deep", nix::sys::stat::Mode::S_IRWXU).expect("mkdir");
        let flags = nix::fcntl::OFlag::O_PATH;
        deep = nix::fcntl::openat(&deep, "deep", flags, nix::sys::stat::Mode::empty()).expect("open");
    }
    for _ in 0..2 {
        client.rm(&tree, ROOT).await.expect("removed, or not there any more");
    }
    assert!(!tree.exists());
    assert!(kept.join("file").exists() && kept.join("inner").exists());
    symlink(&kept, room.path().join("link")).expect("symlink");
    client.rm(&room.path().join("link"), ROOT).await.expect("the link");
    assert!(kept.join("file").exists());
    client.rm(&room.path().join("none/x"), ROOT).await.expect("its directory is not there either");
}

#[tokio::test]
async fn a_read_has_a_range_and_can_be_broken_off() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let file = room.path().join("file");
    let content: Vec<u8> = (0..3_000_000_u32).map(|it| (it % 251) as u8).collect();
    fs::write(&file, &content).expect("write");
    symlink(&file, room.path().join("link")).expect("symlink");

    let (entry, all) = client.cat(whole(&room.path().join("link"), ROOT)).await.expect("through a link");
    assert_eq!((entry.kind(), entry.size, entry.name.as_str()), (FileKind::File, 3_000_000, "link"));
    assert!(all == content);
    let mut part = async |offset: u64, length: Option<u64>| {
        let request = pb::ReadRequest { offset, length, ..whole(&file, ROOT) };
        client.cat(request).await.expect("read").1
    };
    assert!(part(100_000, Some(100_000)).await == content[100_000..200_000]);
    assert!(part(2_999_990, None).await == content[2_999_990..]);
    assert!(part(2_999_990, Some(1000)).await == content[2_999_990..]);
    for (offset, length) in [(0, Some(0)), (3_000_000, None), (u64::MAX, None), (u64::MAX, Some(u64::MAX))] {
        assert!(part(offset, length).await.is_empty(), "{offset} {length:?}");
    }

    // A reader that goes away lets go of the file; /proc tells.
    let large = room.path().join("large");
    fs::write(&large, vec![7; 64 << 20]).expect("write");
    let open = || {
        let links = fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
        links.filter(|it| fs::read_link(it.path()).is_ok_and(|it| it == large)).count()
    };
    let mut broken = Wire::open(stand.address).await;
    broken.ask(Asked::Read(whole(&large, ROOT))).await.expect("the entry");
    assert_eq!(open(), 1);
    drop(broken);
    until("the file is closed", async || (open() == 0).then_some(())).await;
}

#[tokio::test]
async fn what_the_kernel_makes_up_has_the_size_that_is_sent() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    for path in
        ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/devices/system/cpu/online"]
    {
        let path = Path::new(path);
        let content = fs::read(path).expect("read");
        let size = content.len() as u64;
        assert_ne!(fs::metadata(path).expect("metadata").len(), size, "what the kernel says is no size");
        for (offset, length) in [(0, None), (1, Some(2)), (size - 1, None), (1, Some(0)), (size, None)] {
            let request = pb::ReadRequest { offset, length, ..whole(path, ROOT) };
            let (entry, read) = client.cat(request).await.expect("read");
            assert_eq!(entry.size, size, "{path:?}");
            let end = length.map_or(size, |length| offset + length);
            assert_eq!(read, content[offset as usize..end as usize], "{path:?} from {offset}");
        }
    }

    // Of a long one nobody knows the size.
    let argument = "x".repeat(100_000);
    let request = pb::StartRequest {
        argv: ["sh", "-c", "sleep 1000; :", &argument].map(Into::into).to_vec(),
        ..Default::default()
    };
    let pid = client.start(request).await.expect("start").pid;
    let path = PathBuf::from(format!("/proc/{pid}/cmdline"));
    let length = "sh\0-c\0sleep 1000; :\0\0".len() + argument.len();
    until("it has its arguments", async || fs::read(&path).is_ok_and(|it| it.len() == length).then_some(()))
        .await;
    let (entry, all) = client.cat(whole(&path, ROOT)).await.expect("read");
    assert_eq!((entry.size, all.len()), (0, length));
    let request = pb::ReadRequest { offset: 70_000, length: Some(10), ..whole(&path, ROOT) };
    assert_eq!(client.cat(request).await.expect("read").1, b"xxxxxxxxxx");
    client.signal(pid, "SIGKILL").await.expect("kill");

    // A file of holes only looks the same, and is as long as it says.
    let room = room();
    let holes = room.path().join("holes");
    for size in [1000, 2 << 20] {
        fs::File::create(&holes).expect("create").set_len(size).expect("grow");
        let (entry, read) = client.cat(whole(&holes, ROOT)).await.expect("read");
        assert_eq!((entry.size, read.len() as u64), (size, size));
    }
}

#[tokio::test]
async fn a_write_replaces_all_or_nothing() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let file = room.path().join("file");
    let content: Vec<u8> = (0..300_000_u32).map(|it| (it % 251) as u8).collect();
    let entry = client.write_file(start(&file, ROOT), &content).await.expect("a new file");
    assert_eq!((entry.size, entry.mode, entry.path), (300_000, 0o644, text(&file)));
    assert!(fs::read(&file).expect("read") == content);

    // The old content is there until the end, and when the end does not come: half a stream that ends properly, and
    // one that breaks off.
    for properly in [true, false] {
        let mut wire = Wire::open(stand.address).await;
        wire.ask(Asked::Write(start(&file, ROOT))).await.expect("ready");
        wire.send(b"half").await;
        let count = || fs::read_dir(room.path()).expect("list").count();
        until("the file aside is there", async || (count() == 2).then_some(())).await;
        assert!(fs::read(&file).expect("read") == content);
        if properly {
            wire.socket.shutdown().await.expect("shutdown");
        } else {
            wire.socket.set_zero_linger().expect("linger");
            drop(wire);
        }
        until("the file aside is gone", async || (count() == 1).then_some(())).await;
        assert!(fs::read(&file).expect("read") == content);
    }
}

#[tokio::test]
async fn a_write_keeps_who_and_how() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let own = nobody_s(&room);
    let file = own.join("file");
    fs::write(&file, "old").expect("write");
    chown(&file, Some(NOBODY), Some(NOBODY)).expect("chown");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4750)).expect("chmod");
    symlink("file", own.join("link")).expect("symlink");
    fs::hard_link(&file, own.join("second")).expect("link");

    let entry = client.write_file(start(&own.join("link"), ROOT), b"new").await.expect("write");
    assert_eq!((entry.owner.as_str(), entry.mode), ("nobody", 0o750), "not the right to run as its owner");
    assert!(fs::symlink_metadata(own.join("link")).expect("metadata").is_symlink(), "the link stays");
    assert_eq!(fs::read_to_string(&file).expect("read"), "new");
    assert_eq!(fs::read_to_string(own.join("second")).expect("read"), "old", "a new file, not the old one");
    let mode = pb::WriteStart { mode: Some(0o4711), ..start(&file, "nobody") };
    assert_eq!(client.write_file(mode, b"x").await.expect("write").mode, 0o4711, "if it is asked for");

    symlink("not-yet", own.join("dangling")).expect("symlink");
    client.write_file(start(&own.join("dangling"), "nobody"), b"made").await.expect("write");
    assert_eq!(fs::read_to_string(own.join("not-yet")).expect("read"), "made");
    symlink("circle", own.join("circle")).expect("symlink");
    let circle = client.write_file(start(&own.join("circle"), "nobody"), b"x").await;
    assert_eq!(refused(circle), at(Code::FailedPrecondition, "path"));
    let deep = own.join("p/q/r");
    let parents = pb::WriteStart { make_parents: true, ..start(&deep, "nobody") };
    client.write_file(parents, b"").await.expect("write");
    assert_eq!(fs::metadata(own.join("p/q")).expect("metadata").uid(), NOBODY);

    // A directory like /tmp, and a link in it that is a trap for root.
    let open = room.path().join("open");
    fs::create_dir(&open).expect("mkdir");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).expect("chmod");
    fs::write(room.path().join("precious"), "kept").expect("write");
    symlink(room.path().join("precious"), open.join("trap")).expect("symlink");
    std::os::unix::fs::lchown(open.join("trap"), Some(NOBODY), Some(NOBODY)).expect("lchown");
    let trapped = client.write_file(start(&open.join("trap"), ROOT), b"lost").await;
    assert_eq!(refused(trapped), at(Code::PermissionDenied, "path"));
    assert_eq!(fs::read_to_string(room.path().join("precious")).expect("read"), "kept");
}
