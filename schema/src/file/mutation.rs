//! Changing what is there. Each is activity.

use async_graphql::{Context, ID, Object, SimpleObject};
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use super::{CALL, FileEntry, input};
use crate::{
    Error,
    access::{Actor, Member, services},
    capsule::reach::agent_of,
    error::parse_id,
    host::{answer, requested},
};

#[derive(SimpleObject)]
pub struct FilePayload {
    /// As it is now; nothing of what was removed.
    entry: Option<FileEntry>,
}

#[derive(Default)]
pub struct FileMutation;

#[Object]
impl FileMutation {
    /// Makes a directory with all that is missing above it. One that is there already is fine.
    #[graphql(guard = "Member")]
    async fn make_dir(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        path: String,
        user: Option<String>,
    ) -> Result<FilePayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let path = input::Path::checked("path", path)?.0;
        let directory = Some(envd::MakeDirectoryRequest { path, user: input::user(user)? });
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::MakeDirectoryRequest { capsule_id: id.to_string(), directory };
        let request = requested(message, &actor.request_id);
        let made = answer("MakeDirectory", CALL, client.make_directory(request)).await?;
        Ok(FilePayload { entry: Some(FileEntry::alone(made.entry)?) })
    }

    /// Moves or renames. A file in the way is replaced, a directory is not.
    #[graphql(guard = "Member")]
    async fn move_path(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        from: String,
        to: String,
        user: Option<String>,
    ) -> Result<FilePayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let (from, to) = (input::Path::checked("from", from)?.0, input::Path::checked("to", to)?.0);
        let file = Some(envd::MoveRequest { from, to, user: input::user(user)? });
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::MoveFileRequest { capsule_id: id.to_string(), file };
        let request = requested(message, &actor.request_id);
        let moved = answer("MoveFile", CALL, client.move_file(request)).await?;
        Ok(FilePayload { entry: Some(FileEntry::alone(moved.entry)?) })
    }

    /// Removes a file, or a directory with all that is in it. What is not there is removed already.
    #[graphql(guard = "Member")]
    async fn remove_path(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        path: String,
        user: Option<String>,
    ) -> Result<FilePayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let path = input::Path::checked("path", path)?.0;
        let file = Some(envd::RemoveRequest { path, user: input::user(user)? });
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::RemoveFileRequest { capsule_id: id.to_string(), file };
        answer("RemoveFile", CALL, client.remove_file(requested(message, &actor.request_id))).await?;
        Ok(FilePayload { entry: None })
    }
}
