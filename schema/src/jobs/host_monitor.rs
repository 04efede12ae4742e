//! Notices hosts that are not heard from any more: they become unreachable, what runs on them missing.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, prelude::Expr};
use tokio_util::sync::CancellationToken;
use wrenn_entities::{
    HostId,
    capsule::{self, CapsuleState},
    host::{self, HostStatus},
    time::now,
};

use super::Job;
use crate::{
    Error, Services,
    capsule::{
        settle::HOST_UNREACHABLE,
        state::{Cause, Step, advance, is_held},
    },
};

/// Six heartbeats.
const SILENCE: TimeDelta = TimeDelta::seconds(90);

pub(super) struct HostMonitor {
    services: Arc<Services>,
}

impl HostMonitor {
    pub(super) fn new(services: Arc<Services>) -> Self {
        Self { services }
    }

    /// What becomes of a capsule of a host that is out of reach. Paused ones and those in error wait for it.
    async fn give_up(&self, host: HostId) -> Result<(), Error> {
        let rows = capsule::Entity::find()
            .filter(capsule::Column::HostId.eq(host))
            .filter(capsule::Column::State.is_not_in([
                CapsuleState::Stopped,
                CapsuleState::Paused,
                CapsuleState::Missing,
                CapsuleState::Error,
            ]))
            .all(&self.services.db)
            .await?;
        for row in rows.iter().filter(|row| !is_held(row)) {
            let to = match row.state {
                CapsuleState::Starting => CapsuleState::Error,
                // Whoever destroyed it was in earnest; when the host is back it is removed there.
                CapsuleState::Stopping => CapsuleState::Stopped,
                _ => CapsuleState::Missing,
            };
            let cause = Cause::new(HOST_UNREACHABLE, "its host is not heard from");
            advance(&self.services, row, &[row.state], Step::to(to).because(Some(cause)).only_if_free())
                .await?;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Job for HostMonitor {
    fn name(&self) -> &'static str {
        "host-monitor"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn activate(&self, stop: &CancellationToken) -> Result<(), Error> {
        let silent = host::Entity::update_many()
            .col_expr(host::Column::Status, Expr::value(HostStatus::Unreachable))
            .filter(host::Column::Status.eq(HostStatus::Online))
            .filter(
                Condition::any()
                    .add(host::Column::LastHeartbeatAt.is_null())
                    .add(host::Column::LastHeartbeatAt.lt(now() - SILENCE)),
            )
            .exec_with_returning(&self.services.db)
            .await?;
        for host in &silent {
            tracing::warn!(host = %host.id, name = host.name, "a host is not heard from any more");
        }
        let unreachable = host::Entity::find()
            .filter(host::Column::Status.eq(HostStatus::Unreachable))
            .all(&self.services.db)
            .await?;
        for host in unreachable {
            if stop.is_cancelled() {
                break;
            }
            self.give_up(host.id).await?;
        }
        Ok(())
    }
}
