//! Letting a paused capsule go on because somebody wants something of one of its ports.

use std::{sync::Arc, time::Duration};

use wrenn_entities::{
    CapsuleId,
    capsule::{CapsuleState, Model},
};

use crate::{
    Code, Error, Services,
    access::Actor,
    bus::{Change, Received, Subscriber},
    capsule::{
        find,
        operation::{Verb, carry_out},
        settle, state,
    },
};

/// How long a request waits for a capsule that is on its way.
const PATIENCE: Duration = Duration::from_secs(120);

/// Lets a capsule of the actor's team go on and answers when it runs. Many at once resume it once: whoever is not the
/// one to do it waits for who is. `asleep`: its host has just said that it is paused, whatever is written down.
pub(super) async fn wake(
    services: &Arc<Services>,
    actor: &Actor,
    id: CapsuleId,
    asleep: bool,
) -> Result<(), Error> {
    tokio::time::timeout(PATIENCE, until_awake(services, actor, id, asleep))
        .await
        .unwrap_or_else(|_| Err(Error::deadline_exceeded(format!("the capsule {id} does not go on in time"))))
}

async fn until_awake(
    services: &Arc<Services>,
    actor: &Actor,
    id: CapsuleId,
    mut asleep: bool,
) -> Result<(), Error> {
    let mut changes = services.bus.subscribe();
    loop {
        let row = find(&services.db, actor.team_id, id).await?;
        match row.state {
            CapsuleState::Running if asleep => {
                asleep = false;
                catch_up(services, &row).await?;
            }
            CapsuleState::Running | CapsuleState::Snapshotting => return Ok(()),
            CapsuleState::Paused => match carry_out(services, actor, id, Verb::Resume).await {
                Ok(_) => return Ok(()),
                // Somebody else was faster.
                Err(error) if error.code() == Code::Conflict => {}
                Err(error) => return Err(error),
            },
            CapsuleState::Resuming | CapsuleState::Pausing => changed(&mut changes, id).await,
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
async fn changed(changes: &mut Subscriber, id: CapsuleId) {
    loop {
        match tokio::time::timeout(Duration::from_secs(1), changes.receive()).await {
            Ok(Received::Change(Change::Capsule(row))) if row.id == id => return,
            Ok(Received::Change(_)) => {}
            Ok(Received::Missed | Received::Closed) | Err(_) => return,
        }
    }
}
