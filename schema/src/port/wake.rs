//! Letting a paused capsule go on because somebody wants something of one of its ports.
//!
//! Anybody may come to a public port, as often as they like: one waits for the capsule on behalf of all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use wrenn_entities::{
    CapsuleId,
    capsule::{CapsuleState, Model},
};

use crate::{
    Code, Error, Services,
    access::Actor,
    bus::{Subscriber, Topic},
    capsule::{
        find,
        operation::{Verb, carry_out},
        settle, state,
    },
};

/// How long a capsule may take to go on, from when the first one asked for it.
const PATIENCE: Duration = Duration::from_secs(120);

type Waking = BoxFuture<'static, Result<(), Error>>;

/// The capsules that somebody waits for. Each waking goes on for as long as one of those who wait.
#[derive(Default)]
pub(crate) struct Wakings(Mutex<HashMap<(CapsuleId, bool), WeakShared<Waking>>>);

impl Wakings {
    /// The one that is under way, or `new`.
    fn join(&self, key: (CapsuleId, bool), new: impl FnOnce() -> Waking) -> Shared<Waking> {
        let mut wakings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is over says nothing of now.
        let under_way = |waking: &WeakShared<Waking>| waking.upgrade().filter(|one| one.peek().is_none());
        if let Some(waking) = wakings.get(&key).and_then(under_way) {
            return waking;
        }
        wakings.retain(|_, waking| under_way(waking).is_some());
        let waking = new().shared();
        wakings.extend(waking.downgrade().map(|weak| (key, weak)));
        waking
    }
}

/// Lets a capsule of the actor's team go on and answers when it runs. Many at once resume it once, on behalf of the
/// first. `asleep`: its host has just said that it is paused, whatever is written down.
pub(super) async fn wake(
    services: &Arc<Services>,
    actor: &Actor,
    id: CapsuleId,
    asleep: bool,
) -> Result<(), Error> {
    let new = || {
        let awake = tokio::time::timeout(PATIENCE, until_awake(services.clone(), actor.clone(), id, asleep));
        let late = move |_| Err(Error::deadline_exceeded(format!("the capsule {id} does not go on in time")));
        awake.map(move |awake| awake.unwrap_or_else(late)).boxed()
    };
    services.wakings.join((id, asleep), new).await
}

async fn until_awake(
    services: Arc<Services>,
    actor: Actor,
    id: CapsuleId,
    mut asleep: bool,
) -> Result<(), Error> {
    let mut changes = services.bus.subscribe(Topic::Capsule(id));
    loop {
        let row = find(&services.db, actor.team_id, id).await?;
        match row.state {
            CapsuleState::Running if asleep => {
                asleep = false;
                catch_up(&services, &row).await?;
            }
            CapsuleState::Running | CapsuleState::Snapshotting => return Ok(()),
            CapsuleState::Paused => match carry_out(&services, &actor, id, Verb::Resume).await {
                Ok(_) => return Ok(()),
                // Somebody else was faster.
                Err(error) if error.code() == Code::Conflict => {}
                Err(error) => return Err(error),
            },
            CapsuleState::Resuming | CapsuleState::Pausing => changed(&mut changes).await,
            _ => return Err(state::unfit(&row)),
        }
    }
}

/// Writes down what the host says.
async fn catch_up(services: &Services, row: &Model) -> Result<(), Error> {
    let Some(host) = row.host_id else { return Ok(()) };
    let truth = settle::ask(services, host, row.id).await?;
    settle::settle(services, row, truth.as_ref(), false).await.map(drop)
}

/// Waits until the capsule has changed, or may have: another replica may be the one that changes it.
async fn changed(changes: &mut Subscriber) {
    // A second without news is reason enough to look.
    let _ = tokio::time::timeout(Duration::from_secs(1), changes.receive()).await;
}
