//! Files of a running capsule, passed on to its guest. Each call is activity for as long as it is open.

use bytes::Bytes;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::read_file_response::Part;
use wrenn_proto::agent::v1::write_file_request::Part as Written;
use wrenn_proto::envd::v1 as envd;
use wrenn_proto::envd::v1::files_client::FilesClient;

use super::passage::pass_on;
use super::relay::within_life;
use super::request::Call;
use super::service::{AgentService, BoxStream, required};
use crate::capsule::{CapsuleError, Running};
use crate::request_id::RequestId;

/// A running capsule, its files, and the request to it.
type Opened<M> = (Running, FilesClient<Channel>, Request<M>);

fn open<M>(
    service: &AgentService,
    capsule: &str,
    part: Option<M>,
    field: &'static str,
    id: &RequestId,
) -> Result<Opened<M>, Status> {
    let running = service.running(capsule)?;
    let request = running.handle.guest.request(required(part, field)?, id);
    let files = running.handle.guest.files();
    Ok((running, files, request))
}

pub async fn stat_file(
    service: &AgentService,
    request: Request<agent::StatFileRequest>,
) -> Result<Response<envd::StatResponse>, Status> {
    let Call { message, id, .. } = Call::of("StatFile", request);
    let (running, mut files, stat) = open(service, &message.capsule_id, message.file, "file", &id)?;
    Ok(Response::new(within_life(&running, files.stat(stat)).await?.into_inner()))
}

pub async fn list_directory(
    service: &AgentService,
    request: Request<agent::ListDirectoryRequest>,
) -> Result<Response<envd::ListDirectoryResponse>, Status> {
    let Call { message, id, .. } = Call::of("ListDirectory", request);
    let (running, mut files, list) = open(service, &message.capsule_id, message.directory, "directory", &id)?;
    Ok(Response::new(within_life(&running, files.list_directory(list)).await?.into_inner()))
}

pub async fn make_directory(
    service: &AgentService,
    request: Request<agent::MakeDirectoryRequest>,
) -> Result<Response<envd::StatResponse>, Status> {
    let Call { message, id, .. } = Call::of("MakeDirectory", request);
    let (running, mut files, make) = open(service, &message.capsule_id, message.directory, "directory", &id)?;
    Ok(Response::new(within_life(&running, files.make_directory(make)).await?.into_inner()))
}

pub async fn move_file(
    service: &AgentService,
    request: Request<agent::MoveFileRequest>,
) -> Result<Response<envd::StatResponse>, Status> {
    let Call { message, id, .. } = Call::of("MoveFile", request);
    let (running, mut files, change) = open(service, &message.capsule_id, message.file, "file", &id)?;
    Ok(Response::new(within_life(&running, files.r#move(change)).await?.into_inner()))
}

pub async fn remove_file(
    service: &AgentService,
    request: Request<agent::RemoveFileRequest>,
) -> Result<Response<envd::RemoveResponse>, Status> {
    let Call { message, id, .. } = Call::of("RemoveFile", request);
    let (running, mut files, remove) = open(service, &message.capsule_id, message.file, "file", &id)?;
    Ok(Response::new(within_life(&running, files.remove(remove)).await?.into_inner()))
}

pub async fn read_file(
    service: &AgentService,
    request: Request<agent::ReadFileRequest>,
) -> Result<Response<BoxStream<agent::ReadFileResponse>>, Status> {
    let Call { message, id, .. } = Call::of("ReadFile", request);
    let running = service.running(&message.capsule_id)?;
    let read = required(message.file, "file")?;
    let guest = running.handle.guest.clone();
    let (entry, reading) = within_life(&running, guest.content().read(read, &id)).await?;
    let first = Ok(Part::Entry(entry));
    let rest = futures_util::stream::try_unfold(reading, |mut reading| async move {
        Ok(reading.next().await?.map(|data| (Part::Data(data), reading)))
    });
    let parts = tokio_stream::once(first).chain(rest);
    let messages = parts.map(|part| part.map(|part| agent::ReadFileResponse { part: Some(part) }));
    Ok(Response::new(Box::pin(pass_on(running, Box::pin(messages)))))
}

pub async fn watch_directory(
    service: &AgentService,
    request: Request<agent::WatchDirectoryRequest>,
) -> Result<Response<BoxStream<envd::FileEvent>>, Status> {
    let Call { message, id, .. } = Call::of("WatchDirectory", request);
    let (running, mut files, watch) =
        open(service, &message.capsule_id, message.directory, "directory", &id)?;
    let events = within_life(&running, files.watch(watch)).await?.into_inner();
    Ok(Response::new(Box::pin(pass_on(running, events))))
}

/// The first message says which capsule; the guest reads on only as fast as it writes. Whatever breaks off here
/// ends the guest's connection before the content's end, and so changes nothing there.
pub async fn write_file(
    service: &AgentService,
    request: Request<Streaming<agent::WriteFileRequest>>,
) -> Result<Response<envd::StatResponse>, Status> {
    let Call { message: mut messages, id, .. } = Call::of("WriteFile", request);
    let first = required(messages.message().await?, "start")?;
    let running = service.running(&first.capsule_id)?;
    let Some(Written::Start(start)) = first.part else {
        return Err(invalid("a write begins with `start`"));
    };
    let guest = running.handle.guest.clone();
    let mut broken = None;
    let content = content(messages, &mut broken);
    let written = within_life(&running, guest.content().write(start, content, &id)).await?;
    match written {
        Some(entry) => Ok(Response::new(envd::StatResponse { entry: Some(entry) })),
        None => Err(broken.unwrap_or_else(|| Status::aborted("the content broke off"))),
    }
}

fn invalid(message: &str) -> Status {
    super::status::status(&CapsuleError::Invalid { field: "part", message: message.to_owned() })
}

/// What is written, to its end; `None` where the caller breaks off or sends nonsense, and then `broken` says why.
fn content(
    messages: Streaming<agent::WriteFileRequest>,
    broken: &mut Option<Status>,
) -> impl Stream<Item = Option<Bytes>> + Send {
    futures_util::stream::unfold(Some((messages, broken)), |state| async move {
        let (mut messages, broken) = state?;
        let why = match messages.message().await {
            Ok(Some(agent::WriteFileRequest { part: Some(Written::Data(data)), .. })) => {
                return Some((Some(data), Some((messages, broken))));
            }
            Ok(Some(agent::WriteFileRequest { part: Some(Written::End(_)), .. })) => return None,
            Ok(Some(agent::WriteFileRequest { part: Some(Written::Start(_)), .. })) => {
                invalid("a write has one `start`")
            }
            Ok(Some(agent::WriteFileRequest { part: None, .. })) => {
                invalid("a message of a write without a part")
            }
            Ok(None) => invalid("the stream ended before its `end`: nothing was changed"),
            Err(status) => status,
        };
        *broken = Some(why);
        Some((None, None))
    })
}
