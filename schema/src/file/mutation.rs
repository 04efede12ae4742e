//! Changing what is there, which is activity, and URLs for changing and reading it.

use std::convert::Infallible;

use async_graphql::{Context, Enum, ID, Object, SimpleObject};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream;
use wrenn_entities::CapsuleId;
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use super::{
    CALL, FileEntry, input,
    transfer::{self, Place, WriteOptions},
};
use crate::{
    Error,
    access::{Actor, Member, caller, request_id, services},
    capsule::{find, reach::agent_of},
    error::parse_id,
    host::{answer, requested},
    port::url,
    process::Encoding,
    signing::{self, Grant, Signed},
};

#[derive(SimpleObject)]
pub struct FilePayload {
    /// As it is now; nothing of what was removed.
    entry: Option<FileEntry>,
}

/// What a URL of a file is for.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileMethod {
    #[graphql(name = "GET")]
    Get,
    #[graphql(name = "PUT")]
    Put,
}

#[derive(SimpleObject)]
pub struct FileUrlPayload {
    url: String,
    expires_at: DateTime<Utc>,
}

/// Bytes that `writeFile` takes; more goes over HTTP.
const SMALL: usize = 1024 * 1024;

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

    /// Writes a small file, whole or not at all; larger ones go over HTTP. `mode`: permission bits; those of the file that
    /// is replaced, else 0644, if absent. `parents`: makes missing directories above it.
    #[graphql(guard = "Member")]
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the field")]
    async fn write_file(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        path: String,
        content: String,
        #[graphql(default_with = "Encoding::Utf8")] encoding: Encoding,
        user: Option<String>,
        mode: Option<i32>,
        #[graphql(default_with = "Some(false)")] parents: Option<bool>,
    ) -> Result<FilePayload, Error> {
        let content = match encoding {
            Encoding::Utf8 => Bytes::from(content),
            Encoding::Base64 => STANDARD
                .decode(content)
                .map_err(|error| Error::invalid("content", format!("`content` is not base64: {error}")))?
                .into(),
        };
        if content.len() > SMALL {
            let message = format!("`content` is {SMALL} bytes at most; send more with createFileUrl");
            return Err(Error::invalid("content", message));
        }
        let mode = mode.map(|mode| u32::try_from(mode).unwrap_or(u32::MAX));
        let options = WriteOptions { mode, make_parents: parents.unwrap_or(false) };
        // Once here, so that an error names the field of this mutation.
        parse_id::<CapsuleId>("capsuleId", &capsule_id)?;
        let place = Place { capsule: capsule_id.to_string(), path, user };
        let body = stream::iter([Ok::<_, Infallible>(content)]);
        let (services, caller, id) = (services(ctx)?, caller(ctx)?, request_id(ctx)?);
        let entry = transfer::write(services, caller, id, place, options, body).await?;
        Ok(FilePayload { entry: Some(entry) })
    }

    /// A URL with which a file's content is read or written without an API key, until it expires, at most a week from now,
    /// or the key that it was made with is revoked.
    #[graphql(guard = "Member")]
    async fn create_file_url(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        path: String,
        method: FileMethod,
        user: Option<String>,
        #[graphql(default = 300)] expires_in_sec: i32,
    ) -> Result<FileUrlPayload, Error> {
        let (services, actor) = (services(ctx)?, Actor::of(ctx)?);
        let id = parse_id("capsuleId", &capsule_id)?;
        let (path, user) = (input::Path::checked("path", path)?.0, input::user(user)?);
        let signed = Signed { by: actor.key()?, expires_at: signing::expiry(expires_in_sec)? };
        let capsule = find(&services.db, actor.team_id, id).await?.id;
        let grant = match method {
            FileMethod::Get => Grant::Read { capsule, path: &path, user: &user },
            FileMethod::Put => Grant::Write { capsule, path: &path, user: &user },
        };
        let token = services.url_key.sign(grant, signed);
        let url = url::of_file(&services.config, capsule, &path, &user, &token);
        Ok(FileUrlPayload { url, expires_at: signed.expires_at })
    }
}
