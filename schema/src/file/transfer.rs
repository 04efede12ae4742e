//! The content of files, streamed in both directions and never held as a whole.
//!
//! For a transport that carries bytes better than GraphQL does. What is read flows only as fast as it is taken, what is
//! written only as fast as the capsule takes it.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::BoxStream};
use secrecy::SecretString;
use tonic::Streaming;
use wrenn_proto::{
    agent::v1::{self as agent, read_file_response, write_file_request::Part},
    envd::v1 as envd,
};

use super::{CALL, FileEntry, input};
use crate::{
    Error, Services,
    access::{Actor, Caller, RequestId, until_refused},
    capsule::reach::content_of,
    error::parse_id,
    host::{answer, requested},
    port::gateway,
    signing::Grant,
};

/// How long a client may send nothing in the middle of a file.
const SILENCE: Duration = Duration::from_secs(60);

/// Which file of which capsule, and as whom.
#[derive(Clone, Debug)]
pub struct Place {
    /// The capsule's id; the field `capsule` of errors about it.
    pub capsule: String,
    /// Absolute, or relative to the user's home.
    pub path: String,
    /// The template's default if absent.
    pub user: Option<String>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Permission bits; those of the file that is replaced, else 0644, if absent.
    pub mode: Option<u32>,
    /// Makes missing directories above it.
    pub make_parents: bool,
}

/// Which way content goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// Who signed a URL from `createFileUrl`, if it is good for this: then it may be done in their name.
///
/// # Errors
/// `UNAUTHENTICATED` for a token that is not, or not any more.
pub async fn signer(
    services: &Services,
    place: &Place,
    direction: Direction,
    token: &SecretString,
) -> Result<Caller, Error> {
    let capsule = parse_id("capsule", &place.capsule)?;
    let (path, user) = (place.path.as_str(), place.user.as_deref().unwrap_or_default());
    let grant = match direction {
        Direction::Read => Grant::Read { capsule, path, user },
        Direction::Write => Grant::Write { capsule, path, user },
    };
    gateway::signed(services, grant, token).await.map(|(caller, _)| caller)
}

/// A file that is being read.
pub struct Reading {
    /// The file, found behind whatever links led to it.
    pub entry: FileEntry,
    /// What was asked of its content. Dropping it ends the reading in the capsule.
    pub content: BoxStream<'static, Result<Bytes, Error>>,
    /// Returns, with the reason, once whoever reads would not be let in any more: for a transport whose client may take
    /// nothing of the content.
    pub withdrawn: BoxFuture<'static, Error>,
}

/// Reads a file from `offset` on, `length` bytes or to its end.
///
/// # Errors
/// What is wrong before the first byte; what goes wrong later comes in the stream.
pub async fn read(
    services: &Arc<Services>,
    caller: &Caller,
    request_id: &RequestId,
    place: Place,
    offset: u64,
    length: Option<u64>,
) -> Result<Reading, Error> {
    let actor = Actor::new(caller, request_id)?;
    let id = parse_id("capsule", &place.capsule)?;
    let path = input::Path::checked("path", place.path)?.0;
    let file = envd::ReadRequest { path, user: input::user(place.user)?, offset, length };
    let mut client = content_of(services, &actor, id).await?;
    let message = agent::ReadFileRequest { capsule_id: id.to_string(), file: Some(file) };
    let opened = async {
        let response = client.read_file(requested(message, &actor.request_id)).await?;
        let mut wire = response.into_inner();
        let first = wire.message().await?;
        Ok(tonic::Response::new((first, wire)))
    };
    let (first, wire) = answer("ReadFile", CALL, opened).await?;
    match first.ok_or_else(Error::agent_lost)?.part {
        Some(read_file_response::Part::Entry(entry)) => {
            let entry = FileEntry::alone(Some(entry))?;
            let (services, caller) = (services.clone(), caller.clone());
            let withdrawn = async move { until_refused(&services, &caller).await };
            Ok(Reading { entry, content: content(wire).boxed(), withdrawn: withdrawn.boxed() })
        }
        _ => Err(Error::Task("the host named no file before its content".to_owned())),
    }
}

fn content(mut wire: Streaming<agent::ReadFileResponse>) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    async_stream::try_stream! {
        while let Some(message) =
            wire.message().await.map_err(|status| Error::from_agent("ReadFile", status))?
        {
            if let Some(read_file_response::Part::Data(data)) = message.part {
                yield data;
            }
        }
    }
}

/// Writes a file: readers in the capsule see the old content or the new one, whole. When `body` fails or falls silent, or
/// the caller is not accepted any more, nothing is changed.
pub async fn write<E: Display + Send>(
    services: &Arc<Services>,
    caller: &Caller,
    request_id: &RequestId,
    place: Place,
    options: WriteOptions,
    body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Result<FileEntry, Error> {
    let actor = Actor::new(caller, request_id)?;
    let id = parse_id("capsule", &place.capsule)?;
    if options.mode.is_some_and(|mode| mode > 0o7777) {
        return Err(Error::invalid("mode", "`mode` is permission bits, at most 7777 in octal"));
    }
    let start = envd::WriteStart {
        path: input::Path::checked("path", place.path)?.0,
        user: input::user(place.user)?,
        mode: options.mode,
        make_parents: options.make_parents,
    };
    let mut client = content_of(services, &actor, id).await?;
    let broken = Arc::new(Mutex::new(None));
    let parts = parts(start, body, broken.clone());
    let messages =
        parts.map(move |part| agent::WriteFileRequest { capsule_id: id.to_string(), part: Some(part) });
    // As long as the client sends there is no deadline; a host that is gone breaks the connection.
    let written = tokio::select! {
        written = client.write_file(requested(messages, &actor.request_id)) => written,
        error = until_refused(services, caller) => return Err(error),
    };
    if let Some(error) = broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    let written = written.map_err(|status| Error::from_agent("WriteFile", status))?;
    FileEntry::alone(written.into_inner().entry)
}

/// The start, the content in pieces, and the end, which says that it is whole. Without the whole there is no end, and
/// `broken` says why.
fn parts<E: Display + Send>(
    start: envd::WriteStart,
    body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    broken: Arc<Mutex<Option<Error>>>,
) -> impl Stream<Item = Part> + Send + 'static {
    async_stream::stream! {
        yield Part::Start(start);
        let mut body = std::pin::pin!(body);
        loop {
            let error = match tokio::time::timeout(SILENCE, body.next()).await {
                Ok(Some(Ok(mut data))) => {
                    while !data.is_empty() {
                        yield Part::Data(data.split_to(data.len().min(wrenn_proto::PIECE)));
                    }
                    continue;
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => Error::invalid("body", format!("the content broke off: {error}")),
                Err(_) => Error::deadline_exceeded(format!(
                    "nothing of the content came for {} s",
                    SILENCE.as_secs()
                )),
            };
            *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return;
        }
        yield Part::End(agent::WriteFileEnd {});
    }
}
