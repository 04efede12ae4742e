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

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use nix::fcntl::AT_FDCWD;
use tonic::{Request, Response, Status};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::files_server::Files;

use crate::files::actor::{Actor, Workers};
use crate::files::entry::{describe, look, name_owners};
use crate::files::error::{FileError, Target};
use crate::files::path::absolute;
use crate::files::read::{may_be_made_up, open_regular, read_little};
use crate::files::watch::{Watches, Watching};
use crate::files::write::{Writing, check_mode};
use crate::guest::Configuration;
use crate::launch::Invalid;

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

    /// Opens a file for whoever sends its content.
    ///
    /// # Errors
    /// It is not there, not a regular file, or may not be read.
    pub async fn open(&self, user: String, path: &str) -> Result<Opened, Status> {
        let (actor, target) = self.aim(user, path).await?;
        let work = {
            let (target, etc) = (target.clone(), actor.etc());
            move || {
                let (file, stat) = open_regular(&target)?;
                let mut entry = describe(&target.path, &stat);
                name_owners(std::slice::from_mut(&mut entry), &etc);
                let made_up = may_be_made_up(&stat);
                let content = if made_up { read_little(&file) } else { None };
                if let Some(content) = &content {
                    entry.size = content.len() as u64;
                }
                Ok((Arc::new(file), entry, made_up, content))
            }
        };
        let (file, entry, made_up, content) = actor.run(work).await?;
        Ok(Opened { actor, target, file, entry, made_up, content })
    }

    /// Begins to write a file, for whoever receives its content.
    ///
    /// # Errors
    /// It may not be written, or not so.
    pub async fn begin(&self, start: pb::WriteStart) -> Result<Writing, Status> {
        check_mode(start.mode)?;
        let (actor, target) = self.aim(start.user, &start.path).await?;
        Ok(Writing::start(actor, target, start.mode, start.make_parents).await?)
    }
}

/// A regular file that is open for reading.
#[derive(Debug)]
pub struct Opened {
    pub actor: Actor,
    pub target: Target,
    pub file: Arc<File>,
    /// Its size is that of `content`, where that is known.
    pub entry: pb::FileEntry,
    /// The kernel may make it up while it is read.
    pub made_up: bool,
    /// All of it, if it may be made up and is little.
    pub content: Option<Vec<u8>>,
}

/// What lies at a path itself.
fn entry_of(target: &Target, actor: &Actor) -> Result<pb::FileEntry, FileError> {
    let mut entry = look(AT_FDCWD, target.path.as_os_str(), target)?;
    name_owners(std::slice::from_mut(&mut entry), &actor.etc());
    Ok(entry)
}

#[tonic::async_trait]
impl Files for FilesService {
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

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Answer<Self::WatchStream> {
        let pb::WatchRequest { path, user, recursive } = request.into_inner();
        let (actor, target) = self.aim(user, &path).await?;
        let watching = Watching::start(&self.watches, actor, target, recursive).await?;
        Ok(Response::new(Box::pin(watching.into_stream())))
    }
}
