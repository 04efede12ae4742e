use std::sync::Arc;

use axum::extract::ws::Message;
use bytes::Bytes;
use futures_util::{Sink, SinkExt};

use super::outbox::{Frame, Outbox};

/// Small frames that are there at once go into one write, up to this many bytes.
const BATCH: usize = 16 * 1024;

/// Writes what the outbox holds until it is closed or the socket fails.
pub(super) async fn run<S>(mut socket: S, outbox: Arc<Outbox>) -> Result<(), S::Error>
where
    S: Sink<Message> + Unpin,
{
    while let Some(frame) = outbox.next().await {
        let mut batched = 0;
        let mut next = Some(frame);
        while let Some(frame) = next {
            let closing = matches!(frame, Frame::Close(_));
            let message = into_message(frame);
            batched += size(&message);
            socket.feed(message).await?;
            if closing {
                return socket.flush().await;
            }
            next = if batched < BATCH { outbox.take() } else { None };
        }
        socket.flush().await?;
    }
    Ok(())
}

fn into_message(frame: Frame) -> Message {
    match frame {
        Frame::Text(text) => Message::Text(text),
        Frame::Ping(bytes) => Message::Ping(Bytes::copy_from_slice(&bytes.to_be_bytes())),
        Frame::Close(close) => Message::Close(Some((&close).into())),
    }
}

fn size(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        _ => 0,
    }
}
