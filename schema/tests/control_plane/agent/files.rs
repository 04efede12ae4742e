//! The played guests' one file system: paths and contents in memory, all owned by root.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wrenn_proto::{
    FIELD,
    agent::v1::{self as agent, read_file_response, write_file_request::Part},
    envd::v1::{self as envd, file_event},
};

/// A file of this path followed by a number has so many zeros, made as they are read.
pub const ZEROS: &str = "/zeros/";
/// What is written to it is counted and dropped.
pub const NULL: &str = "/null";
/// Reading it breaks off in the middle.
pub const BROKEN: &str = "/broken";

const CHUNK: usize = wrenn_proto::PIECE;

#[derive(Default)]
pub struct Files {
    contents: BTreeMap<String, Bytes>,
    directories: BTreeMap<String, ()>,
    /// Bits and whether parents were to be made, of the last write.
    pub written: Option<(Option<u32>, bool, String)>,
    /// Writings that did not come to their end.
    pub broken_off: usize,
    /// One for each reading that is under way, and this one.
    reading: Arc<()>,
}

fn refused(status: Status, field: &'static str) -> Status {
    let mut status = status;
    status.metadata_mut().insert(FIELD, field.parse().expect("a value"));
    status
}

fn entry(path: &str, kind: envd::FileKind, size: u64) -> envd::FileEntry {
    envd::FileEntry {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path: path.to_owned(),
        kind: kind.into(),
        size,
        mode: 0o644,
        owner: "root".into(),
        group: "root".into(),
        modified_at_ns: 1_700_000_000_000_000_000,
        ..Default::default()
    }
}

impl Files {
    pub fn put(&mut self, path: &str, content: impl Into<Bytes>) {
        self.contents.insert(path.to_owned(), content.into());
    }

    /// Readings that are under way.
    pub fn readers(&self) -> usize {
        Arc::strong_count(&self.reading) - 1
    }

    pub fn get(&self, path: &str) -> Option<Bytes> {
        self.contents.get(path).cloned()
    }

    fn found(&self, path: &str) -> Option<envd::FileEntry> {
        match self.contents.get(path) {
            Some(content) => Some(entry(path, envd::FileKind::File, content.len() as u64)),
            None => self.directories.get(path).map(|()| entry(path, envd::FileKind::Directory, 0)),
        }
    }

    pub fn list(&self, path: &str, depth: u32) -> Result<Vec<envd::FileEntry>, Status> {
        if path != "/" && !self.directories.contains_key(path) {
            return Err(refused(Status::not_found(format!("there is no {path}")), "path"));
        }
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let mut names: Vec<&String> = self.contents.keys().chain(self.directories.keys()).collect();
        names.sort();
        let mut entries = Vec::new();
        for name in names {
            if name.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('/'))
                && let Some(mut entry) = self.found(name)
            {
                if depth > 1 && entry.kind() == envd::FileKind::Directory {
                    entry.children = self.list(name, depth - 1)?;
                }
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    pub fn make_directory(&mut self, path: &str) -> Result<envd::FileEntry, Status> {
        if self.contents.contains_key(path) {
            return Err(refused(Status::already_exists(format!("{path} is a file")), "path"));
        }
        self.directories.insert(path.to_owned(), ());
        Ok(entry(path, envd::FileKind::Directory, 0))
    }

    pub fn rename(&mut self, from: &str, to: &str) -> Result<envd::FileEntry, Status> {
        let missing = || refused(Status::not_found(format!("there is no {from}")), "from");
        let content = self.contents.remove(from).ok_or_else(missing)?;
        self.put(to, content);
        self.found(to).ok_or_else(missing)
    }

    pub fn remove(&mut self, path: &str) {
        let inside = format!("{path}/");
        self.contents.retain(|name, _| name != path && !name.starts_with(&inside));
        self.directories.retain(|name, ()| name != path && !name.starts_with(&inside));
    }
}

pub type Reading = ReceiverStream<Result<agent::ReadFileResponse, Status>>;

/// Sends a file as the request wants it, only as fast as it is taken.
pub fn read(files: &Files, request: &envd::ReadRequest) -> Result<Reading, Status> {
    let zeros = request.path.strip_prefix(ZEROS).and_then(|count| count.parse::<u64>().ok());
    let content = files.get(&request.path);
    let size = match (&content, zeros) {
        (Some(content), _) => content.len() as u64,
        (None, Some(count)) => count,
        (None, None) if files.directories.contains_key(&request.path) => {
            return Err(refused(
                Status::failed_precondition(format!("{} is a directory", request.path)),
                "path",
            ));
        }
        (None, None) => {
            return Err(refused(Status::not_found(format!("there is no {}", request.path)), "path"));
        }
    };
    let first = entry(&request.path, envd::FileKind::File, size);
    let broken = request.path == BROKEN;
    let mut at = request.offset.min(size);
    let end = request.length.map_or(size, |length| size.min(at.saturating_add(length)));
    let (sender, receiver) = mpsc::channel(1);
    let under_way = files.reading.clone();
    tokio::spawn(async move {
        let _under_way = under_way;
        let part = |part| Ok(agent::ReadFileResponse { part: Some(part) });
        if sender.send(part(read_file_response::Part::Entry(first))).await.is_err() {
            return;
        }
        while at < end {
            if broken && at > 0 {
                let _ = sender.send(Err(Status::unavailable("the capsule was paused"))).await;
                return;
            }
            let next = end.min(at + CHUNK as u64);
            let data = match &content {
                Some(content) => content.slice(at as usize..next as usize),
                None => Bytes::from(vec![0; (next - at) as usize]),
            };
            if sender.send(part(read_file_response::Part::Data(data))).await.is_err() {
                return;
            }
            at = next;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// What came of a stream of writes.
pub struct Written {
    pub start: envd::WriteStart,
    /// Nothing of what is written to [`NULL`].
    pub content: Vec<u8>,
    pub size: u64,
}

/// Takes a whole file. One that breaks off changes nothing.
pub async fn receive(mut messages: Streaming<agent::WriteFileRequest>) -> Result<Written, Status> {
    let mut written: Option<Written> = None;
    while let Some(message) = messages.message().await? {
        match (message.part, &mut written) {
            (Some(Part::Start(start)), None) => {
                assert!(message.capsule_id.starts_with("cl-"), "the first message says which capsule");
                if start.path.starts_with("/no/such/") && !start.make_parents {
                    return Err(refused(Status::not_found("there is no /no/such"), "path"));
                }
                if start.path == "/full" {
                    return Err(Status::resource_exhausted("no space is left in the capsule"));
                }
                written = Some(Written { start, content: Vec::new(), size: 0 });
            }
            (Some(Part::Data(data)), Some(written)) => {
                assert!(data.len() <= CHUNK, "{} bytes at once", data.len());
                written.size += data.len() as u64;
                if written.start.path != NULL {
                    written.content.extend_from_slice(&data);
                }
            }
            (Some(Part::End(_)), Some(_)) => {
                return written.ok_or_else(|| Status::internal("the match above saw it"));
            }
            (part, _) => return Err(Status::invalid_argument(format!("out of order: {part:?}"))),
        }
    }
    Err(Status::aborted("the content broke off"))
}

impl Files {
    pub fn finish(&mut self, written: Written) -> envd::FileEntry {
        let Written { start, content, size } = written;
        self.written = Some((start.mode, start.make_parents, start.user));
        if start.path != NULL {
            self.put(&start.path, content);
        }
        let mut made = entry(&start.path, envd::FileKind::File, size);
        made.mode = start.mode.unwrap_or(0o644);
        made
    }
}

pub type Watching = ReceiverStream<Result<envd::FileEvent, Status>>;

/// Tells what the test makes happen, after saying that it is ready.
pub fn watch(mut events: broadcast::Receiver<file_event::Event>) -> Watching {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut next = file_event::Event::Ready(envd::WatchReady {});
        while sender.send(Ok(envd::FileEvent { event: Some(next) })).await.is_ok() {
            next = tokio::select! {
                event = events.recv() => match event { Ok(event) => event, Err(_) => return },
                () = sender.closed() => return,
            };
        }
    });
    ReceiverStream::new(receiver)
}
