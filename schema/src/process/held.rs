//! The output of programs that the process holds in answers, and the bound on all of it.

use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Error;

/// Bytes of each stream that an answer has; what comes after is read and dropped.
const KEPT: usize = 16 * 1024 * 1024;
/// The same where the answer is one frame of a socket, behind which all others wait.
const KEPT_OF_SOCKETS: usize = 1024 * 1024;

/// What the answer to one request holds. Whoever sends the answer keeps this in the request's data until it is sent.
#[derive(Clone, Debug)]
pub struct HeldOutput {
    of_each_stream: usize,
    /// A byte each.
    permits: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Default for HeldOutput {
    fn default() -> Self {
        Self { of_each_stream: KEPT, permits: Arc::default() }
    }
}

impl HeldOutput {
    /// For an answer that is sent over a socket.
    #[must_use]
    pub fn of_socket() -> Self {
        Self { of_each_stream: KEPT_OF_SOCKETS, ..Self::default() }
    }

    /// Of the request that is carried out; one that is sent nowhere holds until then.
    pub(super) fn of(ctx: &Context<'_>) -> Self {
        ctx.data_opt::<Self>().cloned().unwrap_or_default()
    }

    pub(super) fn of_each_stream(&self) -> usize {
        self.of_each_stream
    }

    /// Takes as many bytes more of what all answers may hold.
    pub(super) fn take(&self, all: &Arc<Semaphore>, bytes: usize) -> Result<(), Error> {
        let more = u32::try_from(bytes).ok().and_then(|bytes| all.clone().try_acquire_many_owned(bytes).ok());
        let more = more.ok_or_else(|| {
            Error::resource_exhausted(
                "the server holds as much output of programs as it may at the moment: follow those that write much by \
                 the subscription `exec`",
            )
        })?;
        let mut held = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}
