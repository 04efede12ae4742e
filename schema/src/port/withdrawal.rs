//! When somebody who was let in would not be let in any more.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use wrenn_entities::time::now;

use super::gateway::{Pass, Target};
use crate::{
    Error, Services,
    access::{Caller, until_refused},
};

/// How often the clock and the port are looked at. Most exchanges are over before the first look.
const LOOK: Duration = Duration::from_secs(5);

/// Returns once whoever was let in by `by` would be turned away: a URL at the moment when it expires, a key and a port
/// that is public no more within seconds.
pub(super) async fn withdrawn(services: Arc<Services>, target: Target, by: Pass, caller: Caller) -> Error {
    let turned_away = async {
        match by {
            Pass::Public => until_private(&services, target).await,
            Pass::Key | Pass::Token(_) => until_refused(&services, &caller).await,
        }
    };
    match by {
        Pass::Token(expires_at) => tokio::select! {
            () = until(expires_at) => Error::unauthenticated("the URL has expired"),
            error = turned_away => error,
        },
        Pass::Public | Pass::Key => turned_away.await,
    }
}

/// By the clock, which may be set meanwhile.
async fn until(at: DateTime<Utc>) {
    while let Some(left) = (at - now()).to_std().ok().filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

/// What is asked is remembered until the capsule changes.
async fn until_private(services: &Services, target: Target) -> Error {
    loop {
        tokio::time::sleep(LOOK).await;
        match services.routes.get(&services.db, target.capsule).await {
            Ok(Some(route)) if route.is_public(target.port) => {}
            Ok(_) => return Error::unauthenticated("the port is not public any more"),
            // A database that is away for a moment is no reason to cut everybody off.
            Err(error) => {
                tracing::warn!(error = %error.chain(), "a visitor could not be checked again");
            }
        }
    }
}
