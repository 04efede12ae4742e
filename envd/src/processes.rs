//! The `Processes` service: each call read, carried out by the table, answered.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::{Code, Request, Response, Status};
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::processes_server::Processes;

use crate::exit::signal_named;
use crate::follower::Follower;
use crate::guest::Configuration;
use crate::launch::window_size;
use crate::process::Kind;
use crate::status::field_error;
use crate::table::Table;

type Answer<T> = Result<Response<T>, Status>;
type Events = Pin<Box<dyn Stream<Item = Result<pb::ProcessEvent, Status>> + Send>>;

/// The service over one table.
#[derive(Debug, Clone)]
pub struct ProcessesService {
    pub table: Arc<Table>,
    pub configuration: Arc<Configuration>,
}

#[tonic::async_trait]
impl Processes for ProcessesService {
    type ExecStream = Events;
    type FollowStream = Events;

    async fn start(&self, request: Request<pb::StartRequest>) -> Answer<pb::StartResponse> {
        let surroundings = self.configuration.surroundings();
        let process = self.table.start(request.get_ref(), &surroundings, |it| it.describe())?;
        Ok(Response::new(pb::StartResponse { process: Some(process) }))
    }

    async fn exec(&self, request: Request<pb::StartRequest>) -> Answer<Events> {
        let surroundings = self.configuration.surroundings();
        let from_the_start = pb::OutputCursor::default();
        let follower = self
            .table
            .start(request.get_ref(), &surroundings, |it| Follower::attach(it.trail(), &from_the_start))??;
        Ok(Response::new(Box::pin(follower.into_stream())))
    }

    async fn follow(&self, request: Request<pb::FollowRequest>) -> Answer<Events> {
        let request = request.into_inner();
        let trail = self.table.trail(request.selector.as_ref())?;
        let follower = Follower::attach(trail, &request.after.unwrap_or_default())?;
        Ok(Response::new(Box::pin(follower.into_stream())))
    }

    async fn list(&self, _request: Request<pb::ListRequest>) -> Answer<pb::ListResponse> {
        Ok(Response::new(pb::ListResponse { processes: self.table.list() }))
    }

    async fn signal(&self, request: Request<pb::SignalRequest>) -> Answer<pb::SignalResponse> {
        let request = request.get_ref();
        let signal = signal_named(&request.signal).ok_or_else(|| {
            let message = format!("unknown signal `{}`", request.signal.escape_default());
            field_error(Code::InvalidArgument, "signal", message)
        })?;
        let process = self.table.find(request.selector.as_ref())?;
        process.signal(signal)?;
        Ok(Response::new(pb::SignalResponse { process: Some(process.describe()) }))
    }

    async fn write_input(&self, request: Request<pb::WriteInputRequest>) -> Answer<pb::InputResponse> {
        let request = request.into_inner();
        let process = self.table.find(request.selector.as_ref())?;
        let next_sequence = process.input.write(request.sequence, &request.data).await?;
        Ok(Response::new(pb::InputResponse { next_sequence }))
    }

    async fn close_input(&self, request: Request<pb::CloseInputRequest>) -> Answer<pb::InputResponse> {
        let process = self.table.find(request.get_ref().selector.as_ref())?;
        if matches!(process.kind, Kind::Terminal(_)) {
            let message = "a terminal's input cannot be closed; send its end-of-file character";
            return Err(field_error(Code::InvalidArgument, "selector", message));
        }
        Ok(Response::new(pb::InputResponse { next_sequence: process.input.close() }))
    }

    async fn resize(&self, request: Request<pb::ResizeRequest>) -> Answer<pb::ResizeResponse> {
        let request = request.get_ref();
        let size = window_size(request.size.unwrap_or_default(), "size")?;
        let process = self.table.find(request.selector.as_ref())?;
        let Kind::Terminal(terminal) = &process.kind else {
            return Err(field_error(Code::InvalidArgument, "selector", "the process has no terminal"));
        };
        if !process.running() {
            return Err(Status::failed_precondition("the process has exited"));
        }
        terminal.resize(&size).map_err(|error| Status::internal(format!("cannot resize: {error}")))?;
        Ok(Response::new(pb::ResizeResponse {}))
    }
}
