//! The `Files` service: each call checked, carried out by [`actor`] as its user, answered.

pub mod actor;
pub mod change;
pub mod entry;
pub mod error;
pub mod list;
pub mod path;
pub mod read;
pub mod tree;
pub mod watch;
pub mod write;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use nix::fcntl::AT_FDCWD;
use tonic::{Code, Request, Response, Status, Streaming};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::files_server::Files;
use wrenn_proto::envd::v1::write_request::Part;

use crate::files::actor::{Actor, Workers};
use crate::files::entry::{describe, look, name_owners};
use crate::files::error::{FileError, Target};
use crate::files::path::absolute;
use crate::files::read::{Reading, open_regular};
use crate::files::watch::{Watches, Watching};
use crate::files::write::{Writing, check_mode};
use crate::guest::Configuration;
use crate::launch::Invalid;
use crate::status::field_error;

/// The largest message of a write, in bytes; that of a host has 128 KiB of data.
pub const LARGEST_MESSAGE: usize = 1 << 20;

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over one guest's file systems.
#[derive(Debug, Clone)]
pub struct FilesService {
    pub workers: Workers,
    pub watches: Watches,
    pub configuration: Arc<Configuration>,
}

impl FilesService {
    async fn actor(&self, user: String) -> Result<Actor, FileError> {
        self.workers.actor(user, self.configuration.surroundings()).await
    }

    /// The user and the path of a request that has one path.
    async fn aim(&self, user: String, path: &str) -> Result<(Actor, Target), FileError> {
        let actor = self.actor(user).await?;
        let target = absolute(path, actor.home(), "path")?;
        Ok((actor, target))
    }
}

/// What lies at a path itself.
fn entry_of(target: &Target, actor: &Actor) -> Result<pb::FileEntry, FileError> {
    let mut entry = look(AT_FDCWD, target.path.as_os_str(), target)?;
    name_owners(std::slice::from_mut(&mut entry), &actor.etc());
    Ok(entry)
}

#[tonic::async_trait]
impl Files for FilesService {
    type ReadStream = Answers<pb::ReadResponse>;
    type WatchStream = Answers<pb::FileEvent>;

    async fn stat(&self, request: Request<pb::StatRequest>) -> Answer<pb::StatResponse> {
        let pb::StatRequest { path, user } = request.into_inner();
        let (actor, target) = self.aim(user, &path).await?;
        let work = {
            let actor = actor.clone();
            move || entry_of(&target, &actor)
        };
        Ok(Response::new(pb::StatResponse { entry: Some(actor.run(work).await?) }))
    }

    async fn list_directory(
        &self,
        request: Request<pb::ListDirectoryRequest>,
    ) -> Answer<pb::ListDirectoryResponse> {
        let pb::ListDirectoryRequest { path, user, depth } = request.into_inner();
        if depth > list::DEEPEST {
            let message = format!("{depth} is deeper than {}", list::DEEPEST);
            return Err(Invalid { field: "depth", message }.into());
        }
        let (actor, target) = self.aim(user, &path).await?;
        let etc = actor.etc();
        let work = move || {
            let mut entries = list::list(&target, depth)?;
            name_owners(&mut entries, &etc);
            Ok(entries)
        };
        Ok(Response::new(pb::ListDirectoryResponse { entries: actor.run(work).await? }))
    }

    async fn make_directory(&self, request: Request<pb::MakeDirectoryRequest>) -> Answer<pb::StatResponse> {
        let pb::MakeDirectoryRequest { path, user } = request.into_inner();
        let (actor, target) = self.aim(user, &path).await?;
        let etc = actor.etc();
        let work = move || {
            let directory = change::make_directory(&target)?;
            let stat = nix::sys::stat::fstat(&directory).map_err(target.cannot("look at"))?;
            let mut entry = describe(&target.path, &stat);
            name_owners(std::slice::from_mut(&mut entry), &etc);
            Ok(entry)
        };
        Ok(Response::new(pb::StatResponse { entry: Some(actor.run(work).await?) }))
    }

    async fn r#move(&self, request: Request<pb::MoveRequest>) -> Answer<pb::StatResponse> {
        let pb::MoveRequest { from, to, user } = request.into_inner();
        let actor = self.actor(user).await?;
        let from = absolute(&from, actor.home(), "from").map_err(Status::from)?;
        let to = absolute(&to, actor.home(), "to").map_err(Status::from)?;
        let work = {
            let actor = actor.clone();
            move || {
                change::move_entry(&from, &to)?;
                entry_of(&to, &actor)
            }
        };
        Ok(Response::new(pb::StatResponse { entry: Some(actor.run(work).await?) }))
    }

    async fn remove(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::RemoveResponse> {
        let pb::RemoveRequest { path, user } = request.into_inner();
        let (actor, target) = self.aim(user, &path).await?;
        actor.run(move || change::remove(&target)).await?;
        Ok(Response::new(pb::RemoveResponse {}))
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Answer<Self::ReadStream> {
        let pb::ReadRequest { path, user, offset, length } = request.into_inner();
        let (actor, target) = self.aim(user, &path).await?;
        let work = {
            let (target, etc) = (target.clone(), actor.etc());
            move || {
                let (file, stat) = open_regular(&target)?;
                let mut entry = describe(&target.path, &stat);
                name_owners(std::slice::from_mut(&mut entry), &etc);
                Ok((Arc::new(file), Some(entry)))
            }
        };
        let (file, entry) = actor.run(work).await?;
        let reading = Reading { actor, target, file, entry, offset, wanted: length.unwrap_or(u64::MAX) };
        Ok(Response::new(Box::pin(reading.into_stream())))
    }

    async fn write(&self, request: Request<Streaming<pb::WriteRequest>>) -> Answer<pb::StatResponse> {
        let mut parts = request.into_inner();
        let Some(Part::Start(start)) = next_part(&mut parts).await? else {
            return Err(field_error(Code::InvalidArgument, "part", "a write begins with `start`"));
        };
        check_mode(start.mode)?;
        let (actor, target) = self.aim(start.user, &start.path).await?;
        let mut writing = Writing::start(actor, target, start.mode, start.make_parents).await?;
        match collect(&mut parts, &mut writing).await {
            Ok(()) => Ok(Response::new(pb::StatResponse { entry: Some(writing.finish().await?) })),
            Err(error) => {
                writing.abandon().await;
                Err(error)
            }
        }
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Answer<Self::WatchStream> {
        let pb::WatchRequest { path, user, recursive } = request.into_inner();
        let (actor, target) = self.aim(user, &path).await?;
        let watching = Watching::start(&self.watches, actor, target, recursive).await?;
        Ok(Response::new(Box::pin(watching.into_stream())))
    }
}

/// Takes the content of a write, to its `end`.
async fn collect(parts: &mut Streaming<pb::WriteRequest>, writing: &mut Writing) -> Result<(), Status> {
    loop {
        match next_part(parts).await? {
            Some(Part::Data(data)) => writing.write(data).await?,
            Some(Part::End(pb::WriteEnd {})) => return Ok(()),
            Some(Part::Start(_)) => {
                return Err(field_error(Code::InvalidArgument, "part", "a write has one `start`"));
            }
            None => {
                let message = "the stream ended before its `end`: nothing was changed";
                return Err(field_error(Code::InvalidArgument, "part", message));
            }
        }
    }
}

/// The next part of a write; nothing at the end of the stream.
async fn next_part(parts: &mut Streaming<pb::WriteRequest>) -> Result<Option<Part>, Status> {
    match parts.message().await? {
        None => Ok(None),
        Some(pb::WriteRequest { part: Some(part) }) => Ok(Some(part)),
        Some(pb::WriteRequest { part: None }) => {
            Err(field_error(Code::InvalidArgument, "part", "a message of a write without a part"))
        }
    }
}
