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
use wrenn_schema::Error;

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

    /// The same, or until nothing may go through any more; says which.
    pub(super) async fn over(self, withdrawn: Withdrawal) -> Error {
        tokio::select! {
            () = self.silence() => {
                Error::deadline_exceeded(format!("nothing went through for {} s", SILENCE.as_secs()))
            }
            why = withdrawn => why,
        }
    }
}

/// Ends when whoever was let in would not be let in any more, with the reason.
pub(super) type Withdrawal = BoxFuture<'static, Error>;

/// A body that notes what goes through it.
pub(super) struct Noted<B> {
    inner: B,
    activity: Activity,
}

impl<B> Noted<B> {
    pub(super) fn new(inner: B, activity: Activity) -> Self {
        Self { inner, activity }
    }
}

impl<B> Body for Noted<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if frame.is_ready() {
            self.activity.note();
        }
        frame
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
    async fn anything_either_way_puts_silence_off() {
        let ticks = || stream::repeat_with(|| Ok::<_, Error>(Frame::data(Bytes::from_static(b"x"))));
        let (activity, never) = (Activity::new(), Box::pin(std::future::pending()));
        let mut ways = [(); 2].map(|()| Noted::new(StreamBody::new(ticks()), activity.clone()));
        let (began, over) = (Instant::now(), tokio::spawn(activity.over(never)));
        for _ in 0..2 {
            for way in &mut ways {
                tokio::time::sleep(SILENCE - Duration::from_secs(1)).await;
                way.frame().await.expect("goes on").expect("goes well");
            }
        }
        let why = over.await.expect("ends");
        assert_eq!(why.to_string(), "nothing went through for 620 s");
        assert_eq!(began.elapsed(), SILENCE * 5 - Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_pauses_ends_with_the_permission() {
        let activity = Activity::new();
        let withdrawn = async {
            tokio::time::sleep(SILENCE * 2).await;
            Error::unauthenticated("no more")
        };
        let over = activity.clone().over(Box::pin(withdrawn));
        let going_on = async {
            loop {
                activity.note();
                tokio::time::sleep(SILENCE / 2).await;
            }
        };
        let why = tokio::select! {
            why = over => why,
            () = going_on => unreachable!("it never ends"),
        };
        assert_eq!(why.to_string(), "no more");
    }
}
