//! Files of a running capsule, passed on to its guest. Each call is activity for as long as it is open.

use tokio::sync::oneshot;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;
use wrenn_proto::envd::v1::files_client::FilesClient;

use super::passage::pass_on;
use super::relay::within_life;
use super::request::Call;
use super::service::{AgentService, BoxStream, required};
use crate::capsule::Running;
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
) -> Result<Response<BoxStream<envd::ReadResponse>>, Status> {
    let Call { message, id, .. } = Call::of("ReadFile", request);
    let (running, _, read) = open(service, &message.capsule_id, message.file, "file", &id)?;
    let mut files = running.handle.guest.content();
    let parts = within_life(&running, files.read(read)).await?.into_inner();
    Ok(Response::new(Box::pin(pass_on(running, parts))))
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
/// ends the guest's stream before its `end`, and so changes nothing there.
pub async fn write_file(
    service: &AgentService,
    request: Request<Streaming<agent::WriteFileRequest>>,
) -> Result<Response<envd::StatResponse>, Status> {
    let Call { message: mut messages, id, .. } = Call::of("WriteFile", request);
    let first = required(messages.message().await?, "file")?;
    let running = service.running(&first.capsule_id)?;
    let start = required(first.file, "file")?;
    let (broken, mut why) = oneshot::channel();
    let parts = tokio_stream::once(start).chain(parts(messages, broken));
    let write = running.handle.guest.request(parts, &id);
    let mut files = running.handle.guest.content();
    match within_life(&running, files.write(write)).await {
        Ok(written) => Ok(Response::new(written.into_inner())),
        // The guest only knows that the stream broke off; here it is known why.
        Err(status) => Err(why.try_recv().unwrap_or(status)),
    }
}

/// What goes on to the guest. Ends early where the caller breaks off or sends nonsense, and tells `broken`.
fn parts(
    messages: Streaming<agent::WriteFileRequest>,
    broken: oneshot::Sender<Status>,
) -> impl Stream<Item = envd::WriteRequest> + Send {
    futures_util::stream::unfold((messages, broken), |(mut messages, broken)| async move {
        let part = match messages.message().await {
            Ok(Some(message)) => required(message.file, "file"),
            Ok(None) => return None,
            Err(status) => Err(status),
        };
        match part {
            Ok(part) => Some((part, (messages, broken))),
            Err(status) => {
                // Nobody waits for it once the guest has answered.
                let _answered = broken.send(status);
                None
            }
        }
    })
}
