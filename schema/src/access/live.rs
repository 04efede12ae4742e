//! Subscriptions live long: whoever may no longer see them stops seeing them.
//!
//! Whether somebody is still accepted is looked at once for all that they watch, not once for each subscription.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use wrenn_entities::{ApiKeyId, HostId};

use super::Caller;
use crate::{Code, Error, Services};

/// How long a revoked key still gets what it subscribed to.
const RECHECK: Duration = Duration::from_secs(5);

/// Who can lose what they were accepted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Key(ApiKeyId),
    Host(HostId),
}

/// Somebody who is looked at, as long as a subscription of theirs holds this.
struct Watched {
    /// Why they are not accepted any more, once that is so.
    refused: watch::Receiver<Option<Error>>,
    _looking: AbortOnDropHandle<()>,
}

/// Everybody who watches something.
#[derive(Default)]
pub(crate) struct Standings {
    watched: Mutex<HashMap<Subject, Weak<Watched>>>,
}

impl Standings {
    fn of(&self, services: &Arc<Services>, caller: &Caller) -> Option<Arc<Watched>> {
        let subject = match caller {
            Caller::Anonymous => return None,
            Caller::Key(key) => Subject::Key(key.id),
            Caller::Host(id) => Subject::Host(*id),
        };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let present = watched.get(&subject).and_then(Weak::upgrade);
        // Who was refused and is here again was accepted anew since.
        if let Some(present) = present.filter(|present| present.refused.borrow().is_none()) {
            return Some(present);
        }
        watched.retain(|_, one| one.strong_count() > 0);
        let (sender, refused) = watch::channel(None);
        // Not the services themselves: they hold this.
        let looking = look(Arc::downgrade(services), caller.clone(), sender);
        let new = Arc::new(Watched { refused, _looking: AbortOnDropHandle::new(tokio::spawn(looking)) });
        watched.insert(subject, Arc::downgrade(&new));
        Some(new)
    }
}

async fn look(services: Weak<Services>, caller: Caller, refused: watch::Sender<Option<Error>>) {
    loop {
        tokio::time::sleep(RECHECK).await;
        let Some(services) = services.upgrade() else { return };
        match caller.recheck(&services).await {
            Ok(()) => {}
            Err(error) if error.code() == Code::Unauthenticated => {
                let _ = refused.send(Some(error));
                return;
            }
            // A database that is away for a moment is no reason to cut everybody off.
            Err(error) => tracing::warn!(error = %error.chain(), "a subscriber could not be checked again"),
        }
    }
}

/// Returns once the caller is not accepted any more.
async fn refusal(watched: Option<&Arc<Watched>>) -> Error {
    let Some(watched) = watched else { return std::future::pending().await };
    let mut refused = watched.refused.clone();
    let error = refused.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
    match error {
        Some(error) => error,
        // The services are gone, and what is subscribed to with them.
        None => std::future::pending().await,
    }
}

/// Returns once the caller is not accepted any more: for what may live as long as a subscription without being one. Most
/// of that is over before the first look.
pub(crate) async fn until_refused(services: &Arc<Services>, caller: &Caller) -> Error {
    tokio::time::sleep(RECHECK).await;
    let watched = services.standings.of(services, caller);
    refusal(watched.as_ref()).await
}

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
        let watched = services.standings.of(&services, &caller);
        let mut refusal = std::pin::pin!(refusal(watched.as_ref()));
        loop {
            let item = tokio::select! {
                biased;
                () = services.stopping.cancelled() => Some(Err(Error::unavailable("the server is shutting down"))),
                error = &mut refusal => Some(Err(error)),
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
