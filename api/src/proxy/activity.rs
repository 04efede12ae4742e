//! How long something may go on: until nothing has gone through for too long, or whoever it is for would not be let in
//! any more.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

/// How long nothing may go through in either direction. Longer than the ten minutes after which the usual load balancers
/// give a connection up: it is not this server that ends it first.
pub(super) const SILENCE: Duration = Duration::from_secs(620);

/// When something last went through, either way.
#[derive(Clone)]
pub(super) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has gone through for so long.
    pub(super) async fn silence(self) {
        loop {
            let until = self.last() + SILENCE;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// What ended for silence.
#[derive(Debug, thiserror::Error)]
#[error("nothing went through for {} s", SILENCE.as_secs())]
pub(super) struct Silent;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Ends when whoever was let in would not be let in any more, with the reason.
pub(super) type Withdrawal = BoxFuture<'static, wrenn_schema::Error>;

/// What ends a body before its end.
struct Limits {
    silence: BoxFuture<'static, ()>,
    withdrawn: Withdrawal,
}

/// A body that notes what goes through it, and breaks off when nothing does or nothing may any more.
pub(super) struct Noted<B> {
    inner: B,
    activity: Activity,
    limits: Option<Limits>,
}

impl<B> Noted<B> {
    /// Only notes: whoever sends it waits for silence anyway.
    pub(super) fn sent(inner: B, activity: Activity) -> Self {
        Self { inner, activity, limits: None }
    }

    pub(super) fn received(inner: B, activity: Activity, withdrawn: Withdrawal) -> Self {
        let limits = Some(Limits { silence: Box::pin(activity.clone().silence()), withdrawn });
        Self { inner, activity, limits }
    }
}

impl<B> Body for Noted<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Failure>,
{
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        // First, as what flows without a pause ends, too.
        if let Some(limits) = &mut self.limits
            && let Poll::Ready(why) = limits.withdrawn.as_mut().poll(cx)
        {
            self.limits = None;
            return Poll::Ready(Some(Err(why.into())));
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.activity.note();
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Some(limits) = &mut self.limits else { return Poll::Pending };
        std::task::ready!(limits.silence.as_mut().poll(cx));
        self.limits = None;
        Poll::Ready(Some(Err(Silent.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A connection that notes what is read from it.
pub(super) struct NotedIo<T> {
    inner: T,
    activity: Activity,
}

impl<T> NotedIo<T> {
    pub(super) fn new(inner: T, activity: Activity) -> Self {
        Self { inner, activity }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for NotedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.activity.note();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for NotedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_body_and_anything_either_way_puts_it_off() {
        let frames = stream::unfold(0_u32, |sent| async move {
            if sent == 3 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(SILENCE - Duration::from_secs(1)).await;
            Some((Ok::<_, Failure>(Frame::data(Bytes::from_static(b"x"))), sent + 1))
        });
        let never = Box::pin(std::future::pending());
        let mut body = Noted::received(StreamBody::new(Box::pin(frames)), Activity::new(), never);
        let began = Instant::now();
        for _ in 0..3 {
            body.frame().await.expect("goes on").expect("is not silent for so long");
        }
        let ended = body.frame().await.expect("says so").expect_err("is silent");
        assert!(ended.is::<Silent>());
        assert!(began.elapsed() >= SILENCE * 4 - Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_pauses_ends_with_the_permission() {
        let frames = stream::repeat_with(|| Ok::<_, Failure>(Frame::data(Bytes::from_static(b"x"))));
        let withdrawn = Box::pin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            wrenn_schema::Error::unauthenticated("no more")
        });
        let mut body = Noted::received(StreamBody::new(frames), Activity::new(), withdrawn);
        body.frame().await.expect("goes on").expect("is allowed");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ended = body.frame().await.expect("says so").expect_err("is not allowed any more");
        assert_eq!(ended.to_string(), "no more");
    }
}
