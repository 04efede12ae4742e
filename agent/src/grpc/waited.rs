//! How long a call waits for guests, told to whoever asked where the answer ends.
//!
//! Around the whole service, so that no call has to think of it: what waits for a guest says so by [`for_guest`].

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either};
use hyper::body::{Body, Frame, SizeHint};
use hyper::http::HeaderValue;
use hyper::{HeaderMap, Request, Response};
use tonic::Status;
use tower::Service;
use wrenn_proto::GUEST_WAITED;

tokio::task_local! {
    static WAITED: Arc<Waited>;
}

/// The time in which one call has waited for at least one guest.
#[derive(Debug, Default)]
struct Waited(Mutex<Clock>);

#[derive(Debug, Default)]
struct Clock {
    /// Guests that are waited for now, since there is one.
    waiting: u32,
    since: Option<Instant>,
    total: Duration,
}

impl Waited {
    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_into(&self, headers: &mut HeaderMap) {
        let waited = self.clock().total.as_micros();
        if waited > 0
            && let Ok(value) = HeaderValue::try_from(waited.to_string())
        {
            headers.insert(GUEST_WAITED, value);
        }
    }
}

/// One guest is waited for until this is dropped.
struct Waiting(Arc<Waited>);

impl Waiting {
    fn begin(waited: &Arc<Waited>) -> Self {
        let mut clock = waited.clock();
        clock.waiting += 1;
        clock.since.get_or_insert_with(Instant::now);
        drop(clock);
        Self(waited.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut clock = self.0.clock();
        clock.waiting -= 1;
        if clock.waiting == 0 {
            let waited = clock.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            clock.total += waited;
        }
    }
}

/// Notes how long `work`, which is a guest's, takes.
pub async fn for_guest<F: Future>(work: F) -> F::Output {
    // Nobody is told of what nobody asked for.
    let _waiting = WAITED.try_with(Waiting::begin).ok();
    work.await
}

/// The same work for another task, noted where it is noted here.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match WAITED.try_with(Arc::clone) {
        Ok(waited) => Either::Left(WAITED.scope(waited, work)),
        Err(_) => Either::Right(work),
    }
}

/// A gRPC service whose answers end with [`GUEST_WAITED`], if there was a guest to wait for.
#[derive(Debug, Clone)]
pub struct Timed<S>(pub S);

impl<S, Q, B> Service<Request<Q>> for Timed<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Body,
{
    type Response = Response<TimedBody<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let waited = Arc::<Waited>::default();
        let answer = WAITED.sync_scope(waited.clone(), || self.0.call(request));
        Box::pin(async move {
            let mut response = WAITED.scope(waited.clone(), answer).await?;
            // A refusal is nothing but headers.
            if response.body().is_end_stream() {
                waited.put_into(response.headers_mut());
            }
            Ok(response.map(|body| TimedBody { body, waited }))
        })
    }
}

/// What waits for a guest while it is sent, and says at its end how long.
#[derive(Debug)]
pub struct TimedBody<B> {
    body: B,
    waited: Arc<Waited>,
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for TimedBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let waited = self.waited.clone();
        let mut polled = WAITED.sync_scope(waited.clone(), || Pin::new(&mut self.body).poll_frame(cx));
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            waited.put_into(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join;
    use tokio::time::sleep;

    use super::*;

    const LONG: Duration = Duration::from_millis(50);

    /// What a call that does `work` tells.
    async fn told(work: impl Future<Output = ()>) -> Option<Duration> {
        let waited = Arc::<Waited>::default();
        WAITED.scope(waited.clone(), work).await;
        let mut headers = HeaderMap::new();
        waited.put_into(&mut headers);
        let told = headers.get(GUEST_WAITED)?;
        Some(Duration::from_micros(told.to_str().unwrap().parse().unwrap()))
    }

    #[tokio::test]
    async fn guests_that_are_waited_for_at_once_count_once() {
        let began = Instant::now();
        let both = told(async {
            join(for_guest(sleep(LONG)), for_guest(sleep(2 * LONG))).await;
        })
        .await;
        assert!(both.is_some_and(|both| both >= 2 * LONG && both <= began.elapsed()), "{both:?}");
        let twice = told(async {
            for_guest(sleep(LONG)).await;
            for_guest(sleep(LONG)).await;
        });
        assert!(twice.await.is_some_and(|twice| twice >= 2 * LONG));
        assert_eq!(told(sleep(LONG)).await, None, "no guest");
    }

    #[tokio::test]
    async fn another_task_waits_for_the_same_call() {
        let carried = told(async { tokio::spawn(carried(for_guest(sleep(LONG)))).await.unwrap() }).await;
        assert!(carried.is_some_and(|carried| carried >= LONG));
        let alone = told(async { tokio::spawn(for_guest(sleep(LONG))).await.unwrap() });
        assert_eq!(alone.await, None);
    }
}
