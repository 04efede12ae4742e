//! The content of files over connections of their own.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status};
use wrenn_proto::content::{BROKEN, LONGEST_PIECE, PREAMBLE};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::content_answer::What as Answer;
use wrenn_proto::envd::v1::content_request::What as Asked;

use crate::files::room;
use crate::stand::{DEADLINE, Stand, TOKEN, until};

/// A connection as a host has it.
pub struct Wire {
    pub socket: TcpStream,
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("connect");
        socket.write_all(PREAMBLE).await.expect("send");
        Self { socket }
    }

    pub async fn ask(&mut self, what: Asked) -> Result<Answer, Status> {
        self.ask_as(TOKEN, Some(what)).await
    }

    async fn ask_as(&mut self, token: &'static [u8], what: Option<Asked>) -> Result<Answer, Status> {
        let request =
            pb::ContentRequest { token: Bytes::from_static(token), request_id: "test".into(), what };
        self.length(request.encoded_len()).await;
        self.socket.write_all(&request.encode_to_vec()).await.expect("send");
        self.answer().await
    }

    async fn length(&mut self, length: usize) {
        self.socket.write_all(&u32::try_from(length).expect("short").to_be_bytes()).await.expect("send");
    }

    /// What envd says; its error is one.
    pub async fn answer(&mut self) -> Result<Answer, Status> {
        let read = async {
            let length = self.socket.read_u32().await?;
            let mut bytes = vec![0; length as usize];
            self.socket.read_exact(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = timeout(DEADLINE, read).await.expect("an answer in time")?;
        match pb::ContentAnswer::decode(bytes.as_slice()).expect("an answer").what.expect("an answer") {
            Answer::Error(error) => Err(refused(error)),
            answer => Ok(answer),
        }
    }

    /// All that is left of a file.
    pub async fn rest(&mut self) -> Result<Vec<u8>, Status> {
        let mut content = Vec::new();
        loop {
            match timeout(DEADLINE, self.socket.read_u32()).await.expect("a piece in time")? {
                0 => return Ok(content),
                BROKEN => return Err(self.answer().await.expect_err("why it broke off")),
                length => {
                    assert!(length <= LONGEST_PIECE, "{length}");
                    let (from, length) = (content.len(), length as usize);
                    content.resize(from + length, 0);
                    self.socket.read_exact(&mut content[from..]).await?;
                }
            }
        }
    }

    pub async fn send(&mut self, piece: &[u8]) {
        self.length(piece.len()).await;
        self.socket.write_all(piece).await.expect("send");
    }

    pub async fn end(&mut self) -> Result<pb::FileEntry, Status> {
        self.length(0).await;
        match self.answer().await? {
            Answer::Entry(entry) => Ok(entry),
            other => panic!("not an entry: {other:?}"),
        }
    }

    /// Nothing more comes.
    async fn is_over(&mut self) {
        let read = timeout(DEADLINE, self.socket.read_u8()).await.expect("an end in time");
        read.expect_err("nothing follows");
    }
}

fn refused(error: pb::ContentError) -> Status {
    let mut status = Status::new(Code::from(error.code), error.message);
    if !error.field.is_empty() {
        status.metadata_mut().insert(wrenn_proto::FIELD, error.field.parse().expect("a name"));
    }
    status
}

fn reading(path: &Path) -> Asked {
    Asked::Read(pb::ReadRequest { path: path.to_str().expect("text").into(), ..Default::default() })
}

fn writing(path: &Path) -> Asked {
    Asked::Write(pb::WriteStart { path: path.to_str().expect("text").into(), ..Default::default() })
}

#[tokio::test]
async fn one_connection_carries_one_file_after_the_other() {
    let stand = Stand::start().await;
    stand.client().await;
    let room = room();
    let mut wire = Wire::open(stand.address).await;
    for size in [0, 1, 65_536, 3_000_000] {
        let path = room.path().join(format!("file{size}"));
        let missing = wire.ask(reading(&path)).await.expect_err("not there yet");
        assert_eq!(missing.code(), Code::NotFound);
        let content: Vec<u8> = (0..size).map(|it: u32| (it % 251) as u8).collect();
        assert!(matches!(wire.ask(writing(&path)).await, Ok(Answer::Ready(_))));
        for piece in content.chunks(400_000) {
            wire.send(piece).await;
        }
        assert_eq!(wire.end().await.expect("written").size, u64::from(size));
        let Ok(Answer::Entry(entry)) = wire.ask(reading(&path)).await else { panic!("no entry") };
        assert_eq!(entry.size, u64::from(size));
        assert!(wire.rest().await.expect("read") == content, "{size}");
    }
}

#[tokio::test]
async fn what_the_kernel_makes_up_and_what_has_holes_is_read_as_well() {
    let stand = Stand::start().await;
    stand.client().await;
    let room = room();
    let mut wire = Wire::open(stand.address).await;
    for path in [
        "/proc/version",
        "/proc/sys/kernel/osrelease",
        "/sys/kernel/notes",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ]
    .map(Path::new)
    .into_iter()
    .filter(|path| path.exists())
    {
        wire.ask(reading(path)).await.expect("opened");
        assert!(wire.rest().await.expect("read") == fs::read(path).expect("read"), "{}", path.display());
    }
    let path = room.path().join("holes");
    let mut file = fs::File::create(&path).expect("create");
    file.set_len(2 << 20).expect("grow");
    wire.ask(reading(&path)).await.expect("opened");
    assert!(wire.rest().await.expect("read") == vec![0; 2 << 20], "only a hole");
    file.write_all(b"content before a hole").expect("write");
    wire.ask(reading(&path)).await.expect("opened");
    assert!(wire.rest().await.expect("read") == fs::read(&path).expect("read"));
}

#[tokio::test]
async fn readers_that_stop_hold_nobody_up_and_a_file_that_shrinks_breaks_off() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let room = room();
    let path = room.path().join("large");
    fs::write(&path, vec![7; 64 << 20]).expect("write");
    // More of them than there are threads for files.
    let mut stopped = Vec::new();
    for _ in 0..20 {
        let mut wire = Wire::open(stand.address).await;
        wire.ask(reading(&path)).await.expect("opened");
        stopped.push(wire);
    }
    let mut wire = Wire::open(stand.address).await;
    wire.ask(reading(&path)).await.expect("opened");
    assert!(wire.rest().await.expect("read") == vec![7; 64 << 20]);
    client.stat(&path, "").await.expect("stat");

    fs::File::options().write(true).open(&path).expect("open").set_len(1000).expect("shrink");
    let mut wire = stopped.pop().expect("one");
    // All of a piece that was announced, or the end of the connection; never a piece of something else.
    if let Ok(content) = wire.rest().await {
        assert!(content.len() < 64 << 20 && content.iter().all(|it| *it == 7));
    }
}

#[tokio::test]
async fn only_the_host_with_its_token_is_served_and_nonsense_ends_one_connection() {
    let stand = Stand::start().await;
    let room = room();
    let path = room.path().join("file");
    let refused = async |token, what| {
        let answer = Wire::open(stand.address).await.ask_as(token, what).await;
        answer.expect_err("must be refused").code()
    };
    assert_eq!(refused(TOKEN, Some(writing(&path))).await, Code::Unauthenticated, "before there is one");
    let mut client = stand.client().await;
    assert_eq!(refused(b"", Some(writing(&path))).await, Code::Unauthenticated);
    assert_eq!(
        refused(b"another one of 32 bytes, is wrong", Some(writing(&path))).await,
        Code::Unauthenticated
    );
    assert_eq!(refused(TOKEN, None).await, Code::InvalidArgument);

    for nonsense in [
        &b"WRENN-CONTENT/2\n"[..],
        b"W",
        b"WRENN-CONTENT/1\n\xff\xff\xff\xff",
        b"WRENN-CONTENT/1\n\0\0\0\x02\xff\xff",
    ] {
        let mut socket = TcpStream::connect(stand.address).await.expect("connect");
        socket.write_all(nonsense).await.expect("send");
        socket.shutdown().await.expect("shutdown");
        Wire { socket }.is_over().await;
    }
    // A piece that is too long is told, and nothing of the file is left.
    let mut wire = Wire::open(stand.address).await;
    wire.ask(writing(&path)).await.expect("ready");
    wire.send(b"some").await;
    wire.length(LONGEST_PIECE as usize + 1).await;
    assert_eq!(wire.answer().await.expect_err("too long").code(), Code::InvalidArgument);
    wire.is_over().await;
    until("nothing is left", async || (fs::read_dir(room.path()).expect("list").count() == 0).then_some(()))
        .await;
    client.guest.health(pb::HealthRequest {}).await.expect("it serves on");
}
