//! The states of a capsule's row, and the one way in which they change.
//!
//! ```text
//! pending ──▶ starting ──▶ running ◀──▶ missing        its host is out of reach, and back
//!    │            │        │    ▲
//!    │            ▼        ▼    │
//!    │          error   pausing resuming       running, paused ◀──▶ snapshotting
//!    │                     │    ▲
//!    │                     ▼    │
//!    │                     paused
//!    ▼
//! (withdrawn)      running, paused, missing, error ──▶ stopping ──▶ stopped
//! ```
//! - *pending → starting*: a host was chosen. When none can take it the row is withdrawn: nothing was made.
//! - *starting, pausing, resuming, snapshotting, stopping* are transitional: an operation is under way and holds the row by
//!   `operation_until`, which it renews while it lives. Once that has passed, the reconciler settles the row by what
//!   the host says (see `settle`).
//! - *any → error*: the host cannot use what is left of it; `cause` says why.
//! - *stopped* is final.
//!
//! Every change compares the generation that it was decided on. Whoever is slower changes nothing and learns of it.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ColumnTrait, Condition, ConnectionTrait, EntityTrait, ExprTrait, QueryFilter, prelude::Expr};
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{self, CapsuleState, Model},
    json::Labels,
    time::now,
};
use wrenn_proto::envd;

use crate::{
    Error, Services,
    bus::Change,
    database,
    host::placement::{self, Candidates, Demand},
};

/// How long an operation holds a row without renewing its hold.
pub(crate) const HOLD: TimeDelta = TimeDelta::seconds(15);

/// Why a capsule is in its state. The code is stable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub code: String,
    pub message: String,
}

impl Cause {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    /// The one that the row has, for a change that is none of what it tells.
    pub(crate) fn of(row: &Model) -> Option<Self> {
        let message = row.cause_message.clone().unwrap_or_default();
        row.cause_code.as_ref().map(|code| Self { code: code.clone(), message })
    }
}

impl From<envd::v1::Cause> for Cause {
    fn from(cause: envd::v1::Cause) -> Self {
        Self { code: cause.code, message: cause.message }
    }
}

/// Whether an operation has to be under way for a row in this state.
pub(crate) fn is_transitional(state: CapsuleState) -> bool {
    match state {
        CapsuleState::Pending
        | CapsuleState::Starting
        | CapsuleState::Pausing
        | CapsuleState::Resuming
        | CapsuleState::Snapshotting
        | CapsuleState::Stopping => true,
        CapsuleState::Running
        | CapsuleState::Paused
        | CapsuleState::Stopped
        | CapsuleState::Missing
        | CapsuleState::Error => false,
    }
}

/// Whether somebody else answers for the row at the moment.
pub(crate) fn is_held(row: &Model) -> bool {
    is_transitional(row.state) && row.operation_until.is_some_and(|until| until > now())
}

/// One change of state.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    to: CapsuleState,
    cause: Option<Cause>,
    host: Option<HostId>,
    started_at: Option<DateTime<Utc>>,
    last_active_at: Option<DateTime<Utc>>,
    timeout_sec: Option<i32>,
    labels: Option<Labels>,
    only_if_free: bool,
}

impl Step {
    pub(crate) fn to(state: CapsuleState) -> Self {
        Self {
            to: state,
            cause: None,
            host: None,
            started_at: None,
            last_active_at: None,
            timeout_sec: None,
            labels: None,
            only_if_free: false,
        }
    }

    pub(crate) fn because(mut self, cause: Option<Cause>) -> Self {
        self.cause = cause;
        self
    }

    pub(crate) fn on(mut self, host: HostId) -> Self {
        self.host = Some(host);
        self
    }

    pub(crate) fn started(mut self, at: Option<DateTime<Utc>>) -> Self {
        self.started_at = at;
        self
    }

    pub(crate) fn active(mut self, at: Option<DateTime<Utc>>) -> Self {
        self.last_active_at = at;
        self
    }

    pub(crate) fn with_timeout(mut self, seconds: i32) -> Self {
        self.timeout_sec = Some(seconds);
        self
    }

    pub(crate) fn with_labels(mut self, labels: Labels) -> Self {
        self.labels = Some(labels);
        self
    }

    /// Not while an operation holds the row.
    pub(crate) fn only_if_free(mut self) -> Self {
        self.only_if_free = true;
        self
    }
}

/// Changes the row if it still is as `row` shows it and in one of the `expected` states. `None`: it is not.
/// Announces nothing; for use inside a transaction.
pub(crate) async fn compare_and_set(
    db: &impl ConnectionTrait,
    row: &Model,
    expected: &[CapsuleState],
    step: Step,
) -> Result<Option<Model>, Error> {
    use capsule::Column;
    let at = now();
    let held_until = is_transitional(step.to).then(|| at + HOLD);
    let (code, message) = step.cause.map(|cause| (cause.code, cause.message)).unzip();
    let mut update = capsule::Entity::update_many()
        .col_expr(Column::State, Expr::value(step.to))
        .col_expr(Column::Generation, Expr::col(Column::Generation).add(1))
        .col_expr(Column::CauseCode, Expr::value(code))
        .col_expr(Column::CauseMessage, Expr::value(message))
        .col_expr(Column::UpdatedAt, Expr::value(at))
        .col_expr(Column::OperationUntil, Expr::value(held_until))
        .filter(Column::Id.eq(row.id))
        .filter(Column::Generation.eq(row.generation))
        .filter(Column::State.is_in(expected.iter().copied()));
    if let Some(host) = step.host {
        update = update.col_expr(Column::HostId, Expr::value(host));
    }
    if let Some(started_at) = step.started_at {
        update = update.col_expr(Column::StartedAt, Expr::value(started_at));
    }
    if let Some(last_active_at) = step.last_active_at {
        update = update.col_expr(Column::LastActiveAt, Expr::value(last_active_at));
    }
    if let Some(timeout_sec) = step.timeout_sec {
        update = update.col_expr(Column::TimeoutSec, Expr::value(timeout_sec));
    }
    if let Some(labels) = step.labels {
        update = update.col_expr(Column::Labels, Expr::value(labels));
    }
    if step.only_if_free {
        update = update.filter(
            Condition::any().add(Column::OperationUntil.is_null()).add(Column::OperationUntil.lte(at)),
        );
    }
    Ok(update.exec_with_returning(db).await?.pop())
}

/// [`compare_and_set`], announced to everybody who watches.
pub(crate) async fn advance(
    services: &Services,
    row: &Model,
    expected: &[CapsuleState],
    step: Step,
) -> Result<Option<Arc<Model>>, Error> {
    let changed = compare_and_set(&services.db, row, expected, step).await?.map(Arc::new);
    if let Some(row) = &changed {
        announce(services, row);
    }
    Ok(changed)
}

/// [`advance`] onto a host that has room for it, chosen in the same transaction.
pub(crate) async fn place(
    services: &Services,
    row: &Model,
    expected: &[CapsuleState],
    to: CapsuleState,
    (demand, candidates): (Demand, Candidates<'_>),
) -> Result<(HostId, Arc<Model>), Error> {
    let transaction = database::begin(&services.db).await?;
    let host = placement::choose(&transaction, &services.config, demand, candidates).await?;
    let placed = compare_and_set(&transaction, row, expected, Step::to(to).on(host)).await?;
    let placed = Arc::new(placed.ok_or_else(|| lost(row.id))?);
    transaction.commit().await?;
    announce(services, &placed);
    Ok((host, placed))
}

/// To everybody who watches, once it is committed.
fn announce(services: &Services, row: &Arc<Model>) {
    tracing::info!(
        capsule = %row.id,
        state = ?row.state,
        generation = row.generation,
        cause = row.cause_code.as_deref(),
        "capsule changed"
    );
    services.bus.publish(Change::Capsule(row.clone()));
}

/// The loser's answer.
pub(crate) fn lost(id: CapsuleId) -> Error {
    Error::conflict(format!("the capsule {id} was changed by somebody else at the same moment"))
}

/// Why something that needs another state cannot be done in this one.
pub(crate) fn unfit(row: &Model) -> Error {
    unfit_in(row.id, row.state, row.cause_message.as_deref())
}

/// The same, of a capsule of which only so much is known.
pub(crate) fn unfit_in(id: CapsuleId, state: CapsuleState, why: Option<&str>) -> Error {
    match state {
        CapsuleState::Paused => {
            Error::failed_precondition(format!("the capsule {id} is paused; resume it first"))
        }
        CapsuleState::Stopped => Error::failed_precondition(format!("the capsule {id} is stopped")),
        CapsuleState::Running => Error::failed_precondition(format!("the capsule {id} is running")),
        CapsuleState::Missing => {
            Error::unavailable(format!("the host of the capsule {id} is out of reach at the moment"))
        }
        CapsuleState::Error => {
            let why = why.unwrap_or("no reason is known");
            Error::failed_precondition(format!("the capsule {id} cannot be used: {why}"))
        }
        state => {
            let name = format!("{state:?}").to_lowercase();
            Error::conflict(format!("the capsule {id} is {name}; try again when that is done"))
        }
    }
}
