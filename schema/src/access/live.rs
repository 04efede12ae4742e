//! Subscriptions live long: whoever may no longer see them stops seeing them.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Caller;
use crate::{Code, Error, Services};

/// How long a revoked key still gets what it subscribed to.
const RECHECK: Duration = Duration::from_secs(10);

/// `inner`, as long as the caller is accepted and the server runs. Ends after the first error.
pub(crate) fn while_allowed<T>(
    services: Arc<Services>,
    caller: Caller,
    inner: impl Stream<Item = Result<T, Error>> + Send,
) -> impl Stream<Item = Result<T, Error>> + Send
where
    T: Send,
{
    async_stream::stream! {
        let mut inner = std::pin::pin!(inner);
        let mut recheck = interval_at(Instant::now() + RECHECK, RECHECK);
        recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let item = tokio::select! {
                biased;
                () = services.stopping.cancelled() => Some(Err(Error::unavailable("the server is shutting down"))),
                _ = recheck.tick() => match caller.recheck(&services).await {
                    Err(error) if error.code() == Code::Unauthenticated => Some(Err(error)),
                    Err(error) => {
                        // A database that is away for a moment is no reason to cut everybody off.
                        tracing::warn!(error = %error.chain(), "a subscriber could not be checked again");
                        continue;
                    }
                    Ok(()) => continue,
                },
                item = inner.next() => item,
            };
            let Some(item) = item else { break };
            let last = item.is_err();
            yield item;
            if last {
                break;
            }
        }
    }
}
