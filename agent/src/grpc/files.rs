//! Files of a running capsule, passed on to its guest.

use tonic::{Request, Response, Status, Streaming};
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;

use super::service::{AgentService, BoxStream};

pub async fn stat_file(
    _service: &AgentService,
    _request: Request<agent::StatFileRequest>,
) -> Result<Response<envd::StatResponse>, Status> {
    Err(Status::unimplemented("StatFile"))
}

pub async fn list_directory(
    _service: &AgentService,
    _request: Request<agent::ListDirectoryRequest>,
) -> Result<Response<envd::ListDirectoryResponse>, Status> {
    Err(Status::unimplemented("ListDirectory"))
}

pub async fn make_directory(
    _service: &AgentService,
    _request: Request<agent::MakeDirectoryRequest>,
) -> Result<Response<envd::StatResponse>, Status> {
    Err(Status::unimplemented("MakeDirectory"))
}

pub async fn move_file(
    _service: &AgentService,
    _request: Request<agent::MoveFileRequest>,
) -> Result<Response<envd::StatResponse>, Status> {
    Err(Status::unimplemented("MoveFile"))
}

pub async fn remove_file(
    _service: &AgentService,
    _request: Request<agent::RemoveFileRequest>,
) -> Result<Response<envd::RemoveResponse>, Status> {
    Err(Status::unimplemented("RemoveFile"))
}

pub async fn read_file(
    _service: &AgentService,
    _request: Request<agent::ReadFileRequest>,
) -> Result<Response<BoxStream<envd::ReadResponse>>, Status> {
    Err(Status::unimplemented("ReadFile"))
}

pub async fn write_file(
    _service: &AgentService,
    _request: Request<Streaming<agent::WriteFileRequest>>,
) -> Result<Response<envd::StatResponse>, Status> {
    Err(Status::unimplemented("WriteFile"))
}

pub async fn watch_directory(
    _service: &AgentService,
    _request: Request<agent::WatchDirectoryRequest>,
) -> Result<Response<BoxStream<envd::FileEvent>>, Status> {
    Err(Status::unimplemented("WatchDirectory"))
}
