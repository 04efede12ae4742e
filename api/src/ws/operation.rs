use std::panic::AssertUnwindSafe;

use async_graphql::{ErrorExtensionValues, Response, ServerError, Value};
use axum::extract::ws::Utf8Bytes;
use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use wrenn_schema::access::RequestId;

use super::{message::ServerMessage, outbox::Lane};

/// Set aside beyond the size of the last event, so that one slightly longer does not move.
const SLACK: usize = 256;

/// Runs one operation to its end: a query or mutation is a stream of one response.
///
/// The stream is polled only when the lane has room, so a reader that holds back holds the producer back.
pub(super) async fn run(
    id: String,
    request_id: RequestId,
    responses: BoxStream<'static, Response>,
    lane: Lane,
) {
    let last = match AssertUnwindSafe(forward(&id, responses, &lane)).catch_unwind().await {
        Ok(Some(last)) => last,
        Ok(None) => return,
        Err(_) => {
            tracing::error!(request_id = request_id.0, operation = id, "an operation panicked");
            ServerMessage::Error { id: &id, payload: &[internal(&request_id)] }.to_text(SLACK)
        }
    };
    lane.finish(last).await;
}

/// Forwards the responses and gives the last word; none if nobody listens any more.
async fn forward(id: &str, mut responses: BoxStream<'static, Response>, lane: &Lane) -> Option<Utf8Bytes> {
    let mut size = SLACK;
    let mut first = true;
    while lane.room().await {
        // A stream that is always ready must not keep the thread.
        tokio::task::coop::consume_budget().await;
        let Some(response) = responses.next().await else {
            return Some(ServerMessage::Complete { id }.to_text(SLACK));
        };
        if first && never_ran(&response) {
            return Some(ServerMessage::Error { id, payload: &response.errors }.to_text(SLACK));
        }
        first = false;
        let text = ServerMessage::Next { id, payload: &response }.to_text(size + SLACK);
        size = text.len();
        lane.push(text);
    }
    None
}

/// The document was refused (it did not parse, is not valid, or is over a limit): the protocol calls that
/// an `error`, whereas an error of a field is part of a `next`.
fn never_ran(response: &Response) -> bool {
    response.data == Value::Null
        && !response.errors.is_empty()
        && response.errors.iter().all(|error| error.path.is_empty())
}

fn internal(request_id: &RequestId) -> ServerError {
    let mut extensions = ErrorExtensionValues::default();
    extensions.set("code", "INTERNAL");
    extensions.set("requestId", request_id.0.as_str());
    let mut error = ServerError::new("internal error", None);
    error.extensions = Some(extensions);
    error
}
