//! Changes of files, live.

use async_graphql::{Context, Enum, ID, SimpleObject, Subscription, Union};
use futures_util::Stream;
use wrenn_proto::{
    agent::v1 as agent,
    envd::v1::{self as envd, file_event::Event},
};

use super::{CALL, FileKind, input};
use crate::{
    Error,
    access::{Actor, Member, caller, services, while_allowed},
    capsule::reach::agent_of,
    error::parse_id,
    host::{answer, requested},
};

/// What happens below a directory that is watched.
#[derive(Union)]
pub enum FileEvent {
    Ready(WatchReady),
    Change(FileChange),
    Overflow(WatchOverflow),
}

/// First: what happens from now on is told.
#[derive(SimpleObject)]
pub struct WatchReady {
    /// The directory, as it was asked for.
    path: String,
}

/// Changes were lost: look anew.
#[derive(SimpleObject)]
pub struct WatchOverflow {
    /// The directory, as it was asked for.
    path: String,
}

/// Something below the directory changed.
#[derive(SimpleObject)]
pub struct FileChange {
    kind: FileChangeKind,
    /// Absolute; of a move the new place.
    path: String,
    file_kind: FileKind,
    /// Of a move the old place.
    moved_from: Option<String>,
}

#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChangeKind {
    Created,
    Modified,
    Removed,
    /// Within what is watched. Of a move over its edge one side is seen, as created or removed.
    Moved,
    /// Mode or owner.
    Attributes,
}

impl FileEvent {
    /// `None`: an event of a kind that this version does not know.
    fn from_wire(event: envd::FileEvent, watched: &str) -> Option<Self> {
        Some(match event.event? {
            Event::Ready(_) => Self::Ready(WatchReady { path: watched.to_owned() }),
            Event::Overflow(_) => Self::Overflow(WatchOverflow { path: watched.to_owned() }),
            Event::Change(change) => Self::Change(FileChange {
                kind: match change.kind() {
                    envd::FileChangeKind::Created => FileChangeKind::Created,
                    envd::FileChangeKind::Modified => FileChangeKind::Modified,
                    envd::FileChangeKind::Removed => FileChangeKind::Removed,
                    envd::FileChangeKind::Moved => FileChangeKind::Moved,
                    envd::FileChangeKind::Attributes => FileChangeKind::Attributes,
                    envd::FileChangeKind::Unspecified => return None,
                },
                file_kind: change.file_kind().into(),
                path: change.path,
                moved_from: change.moved_from,
            }),
        })
    }
}

#[derive(Default)]
pub struct FileSubscription;

#[Subscription]
impl FileSubscription {
    /// What happens in a directory from now on; `recursive`: and in all that are below it.
    #[graphql(guard = "Member")]
    async fn watch_directory(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        path: String,
        #[graphql(default_with = "Some(false)")] recursive: Option<bool>,
        user: Option<String>,
    ) -> Result<impl Stream<Item = Result<FileEvent, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let path = input::Path::checked("path", path)?.0;
        let directory = envd::WatchRequest {
            path: path.clone(),
            user: input::user(user)?,
            recursive: recursive.unwrap_or(false),
        };
        let mut client = agent_of(&services, &actor, id).await?;
        let message = agent::WatchDirectoryRequest { capsule_id: id.to_string(), directory: Some(directory) };
        let request = requested(message, &actor.request_id);
        let mut wire = answer("WatchDirectory", CALL, client.watch_directory(request)).await?;
        let inner = async_stream::try_stream! {
            // It ends with the directory.
            while let Some(event) =
                wire.message().await.map_err(|status| Error::from_agent("WatchDirectory", status))?
            {
                if let Some(event) = FileEvent::from_wire(event, &path) {
                    yield event;
                }
            }
        };
        Ok(while_allowed(services, caller(ctx)?.clone(), inner))
    }
}
