//! What breaks an answer off from outside: it may not go on, or nobody takes it.
//!
//! Its body cannot do that: while the client takes nothing, nobody asks the body for anything. So this goes with the answer
//! to whoever drives the connection.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use wrenn_schema::Error;

/// When an answer is to be broken off, and why. Put among its extensions.
#[derive(Clone)]
pub(crate) struct Cutoff(Arc<Mutex<BoxFuture<'static, Error>>>);

impl Cutoff {
    pub(crate) fn new(reached: impl Future<Output = Error> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::pin(reached))))
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().poll(cx)
    }
}
