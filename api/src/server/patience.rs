//! How long a client may take: ten seconds from the connection on for the whole head of its first request; then ten
//! minutes to say anything, and ten seconds from its first byte on for each head that follows.
//!
//! ```text
//!        first byte            head is whole
//! idle ─────────────▶ head ─────────────────▶ busy
//!   ▲                 ▲ │ too slow: broken off   │
//!   │       connected ┘ ▼                        │
//!   └────────────────────────────────────────────┘ the answer is over
//! ```
//! An answer may be broken off as well (see [`Cutoff`]).
//!
//! The HTTP library knows one limit, for idleness and head together; here it is that for idleness.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{Response, StatusCode},
};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::capacity::Place;
use crate::cutoff::Cutoff;

/// For the head of a request, from its first byte; for the first one, from the connection on.
const HEAD: Duration = Duration::from_secs(10);

#[derive(Clone)]
enum Phase {
    Idle,
    Head(Instant),
    /// Not beyond the cutoff of the answer, once that has one.
    Busy(Option<Cutoff>),
}

/// The phase of one connection.
#[derive(Clone)]
pub(super) struct Phases(Arc<Mutex<Phase>>);

impl Phases {
    /// Of a connection that was just made.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Phase::Head(Instant::now() + HEAD))))
    }

    fn set(&self, phase: Phase) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn get(&self) -> Phase {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The head of a request is whole. Until what this returns is dropped, the connection is busy.
    pub(super) fn busy(&self) -> Busy {
        self.set(Phase::Busy(None));
        Busy(Some(self.clone()))
    }

    /// Waits until what is being answered is to be broken off, and says why. An answer that begins wakes nobody here: to be
    /// polled whenever the connection was.
    pub(super) async fn cut_off(&self) -> wrenn_schema::Error {
        poll_fn(|cx| match self.get() {
            Phase::Busy(Some(cutoff)) => cutoff.poll(cx),
            _ => Poll::Pending,
        })
        .await
    }
}

/// A request that is not answered to the end yet.
pub(super) struct Busy(Option<Phases>);

impl Busy {
    /// The answer may go on until then.
    fn until(&self, cutoff: Cutoff) {
        if let Some(phases) = &self.0 {
            phases.set(Phase::Busy(Some(cutoff)));
        }
    }

    /// The connection speaks another protocol from now on: no head of a request will follow.
    pub(super) fn for_ever(mut self) {
        self.0 = None;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(phases) = &self.0 {
            phases.set(Phase::Idle);
        }
    }
}

/// A connection that breaks off when a head takes too long.
pub(super) struct Patient<T> {
    inner: T,
    phases: Phases,
    limit: Pin<Box<Sleep>>,
    /// Also of what a connection is upgraded to.
    _place: Option<Place>,
}

impl<T> Patient<T> {
    /// `place`: where connections are counted, the one of this connection.
    pub(super) fn new(inner: T, phases: Phases, place: Option<Place>) -> Self {
        Self { inner, phases, limit: Box::pin(sleep_until(Instant::now())), _place: place }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        match (&read, self.phases.get()) {
            (Poll::Ready(Ok(())), Phase::Idle) if buf.filled().len() > before => {
                self.phases.set(Phase::Head(Instant::now() + HEAD));
            }
            (Poll::Pending, Phase::Head(until)) => {
                if self.limit.deadline() != until {
                    self.limit.as_mut().reset(until);
                }
                if self.limit.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            // Byte by byte it takes no less long.
            (Poll::Ready(Ok(())), Phase::Head(until)) if until <= Instant::now() => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            _ => {}
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// The body of an answer, with which its request is over.
pub(super) struct Answer {
    inner: Body,
    _busy: Option<Busy>,
}

impl Answer {
    /// What becomes of a connection with the answer to the request that kept it busy.
    pub(super) fn to(mut response: Response<Body>, busy: Busy) -> Response<Self> {
        if let Some(cutoff) = response.extensions_mut().remove() {
            busy.until(cutoff);
        }
        let busy = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                busy.for_ever();
                None
            }
            _ => Some(busy),
        };
        response.map(|inner| Self { inner, _busy: busy })
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_has_not_asked_anything_yet_is_not_waited_for() {
        let (mut client, server) = duplex(64);
        let mut server = Patient::new(server, Phases::new(), None);
        let began = Instant::now();
        let silent = server.read_u8().await.unwrap_err();
        assert_eq!((silent.kind(), began.elapsed()), (io::ErrorKind::TimedOut, HEAD));

        // Nor does a first byte give it more time.
        let (phases, began) = (Phases::new(), Instant::now());
        let mut server = Patient::new(server.inner, phases, None);
        tokio::time::sleep(HEAD / 2).await;
        client.write_all(b"G").await.unwrap();
        server.read_u8().await.unwrap();
        let slow = server.read_u8().await.unwrap_err();
        assert_eq!((slow.kind(), began.elapsed()), (io::ErrorKind::TimedOut, HEAD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_waited_for_but_not_for_long() {
        let (mut client, server) = duplex(64);
        let phases = Phases::new();
        let mut server = Patient::new(server, phases.clone(), None);
        let mut byte = [0];
        drop(phases.busy());
        for _ in 0..2 {
            // However long it was idle.
            let began = Instant::now();
            let (read, ()) = tokio::join!(server.read_exact(&mut byte), async {
                tokio::time::sleep(HEAD * 20).await;
                client.write_all(b"G").await.unwrap();
            });
            read.unwrap();
            assert!(began.elapsed() >= HEAD * 20);
            // While it is answered, what comes may take its time.
            let busy = phases.busy();
            let (read, ()) = tokio::join!(server.read_exact(&mut byte), async {
                tokio::time::sleep(HEAD * 2).await;
                client.write_all(b"b").await.unwrap();
            });
            read.unwrap();
            drop(busy);
        }
        let slowly = async |server: &mut Patient<_>, client: &mut tokio::io::DuplexStream| {
            client.write_all(b"G").await.unwrap();
            let mut byte = [0];
            server.read_exact(&mut byte).await.unwrap();
            let (read, ()) = tokio::join!(server.read_exact(&mut byte), async {
                tokio::time::sleep(HEAD * 2).await;
                client.write_all(b"E").await.unwrap();
            });
            read.map(drop)
        };
        let began = Instant::now();
        let slow = slowly(&mut server, &mut client).await.unwrap_err();
        assert_eq!(slow.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), HEAD * 2, "when the other half of the test was done");

        // What became another protocol has no heads.
        let (mut client, server) = duplex(64);
        let mut server = Patient::new(server, phases.clone(), None);
        let switched = Response::builder().status(101).body(Body::empty()).unwrap();
        drop(Answer::to(switched, phases.busy()));
        slowly(&mut server, &mut client).await.unwrap();
        drop(Answer::to(Response::new(Body::empty()), phases.busy()));
        slowly(&mut server, &mut client).await.unwrap_err();
    }
}
