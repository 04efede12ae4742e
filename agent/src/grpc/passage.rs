//! Streams of a guest that are passed on as they are: message by message, each asked for only when the one before
//! was taken. Unlike a process's output they cannot be taken up again: what breaks them ends them.

use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::relay::{ended_by, refusal};
use super::waited::for_guest;
use crate::capsule::Running;

/// What the guest sends, until it ends or its capsule's life does; the capsule is in use until then, if `running`
/// says so. A reader that goes away ends the guest's part at once.
pub fn pass_on<T: Send + 'static>(
    running: Running,
    messages: impl Stream<Item = Result<T, Status>> + Send + Unpin,
) -> impl Stream<Item = Result<T, Status>> + Send {
    futures_util::stream::unfold(Some((running, messages)), |passage| async move {
        let (running, mut messages) = passage?;
        let received = tokio::select! {
            biased;
            received = for_guest(messages.next()) => match received.transpose() {
                Err(status) => Err(ended_by(&running, status).await),
                received => received,
            },
            end = running.handle.life.ended() => Err(refusal(&running, end)),
        };
        match received {
            Ok(message) => message.map(|message| (Ok(message), Some((running, messages)))),
            Err(status) => Some((Err(status), None)),
        }
    })
}
