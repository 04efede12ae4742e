//! What every call has in common: its id, its span, and that its work outlives it.

use tonic::{Request, Response, Status};
use tracing::{Instrument, Span};

use super::status::status;
use crate::capsule::CapsuleError;
use crate::request_id::RequestId;

/// A call, taken apart.
pub struct Call<T> {
    pub message: T,
    pub id: RequestId,
    pub span: Span,
}

impl<T> Call<T> {
    pub fn of(method: &'static str, request: Request<T>) -> Self {
        let id = RequestId::from_metadata(request.metadata());
        let span = tracing::info_span!("call", method, request = %id);
        Self { message: request.into_inner(), id, span }
    }
}

/// Runs `work` to its end, also when the caller goes away.
pub async fn detached<T: Send + 'static>(
    span: Span,
    work: impl Future<Output = Result<T, CapsuleError>> + Send + 'static,
) -> Result<Response<T>, Status> {
    match tokio::spawn(work.instrument(span)).await {
        Ok(Ok(answer)) => Ok(Response::new(answer)),
        Ok(Err(error)) => Err(status(&error)),
        Err(panicked) => {
            tracing::error!(%panicked, "a call panicked");
            Err(Status::internal("the agent failed; its log says more"))
        }
    }
}
