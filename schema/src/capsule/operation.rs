//! Operations that take a while: held rows, and changes from one state to another through the host's agent.

use std::{
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, prelude::Expr};
use tokio_util::sync::{CancellationToken, DropGuard};
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{self, CapsuleState, Model},
    time::{self, now},
};
use wrenn_proto::agent::v1 as agent;

use super::{
    settle,
    state::{self, HOLD, Step, advance, place},
};
use crate::{
    Error, Services,
    access::Actor,
    host::{
        answer,
        placement::{Candidates, Demand},
        requested,
    },
};

/// A hold is renewed this often; three times before it would run out.
const RENEW: Duration = Duration::from_secs(5);
/// How long pausing or resuming may take: all memory of a large capsule goes to disk or comes from it.
const PAUSE: Duration = Duration::from_secs(120);

/// Keeps rows held as long as it lives.
pub(crate) struct Hold {
    _stop: DropGuard,
}

impl Hold {
    /// Renews the holds that came with the change to each of `rows`.
    pub(crate) fn keep(services: &Arc<Services>, rows: &[Arc<Model>]) -> Self {
        let stop = CancellationToken::new();
        let mut held = Condition::any();
        for row in rows {
            let unchanged = capsule::Column::Generation.eq(row.generation);
            held = held.add(capsule::Column::Id.eq(row.id).and(unchanged));
        }
        let (db, stopped) = (services.db.clone(), stop.clone());
        services.tasks.spawn(async move {
            while stopped.run_until_cancelled(tokio::time::sleep(RENEW)).await.is_some() {
                let renewed = capsule::Entity::update_many()
                    .col_expr(capsule::Column::OperationUntil, Expr::value(now() + HOLD))
                    .filter(held.clone())
                    .exec(&db)
                    .await;
                if let Err(error) = renewed {
                    tracing::warn!(%error, "the hold on a capsule could not be renewed");
                }
            }
        });
        Self { _stop: stop.drop_guard() }
    }
}

/// What can be done to a capsule that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Pause,
    Resume,
    Destroy,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Destroy => "destroy",
        }
    }

    /// From which states, through which, to which.
    fn path(self) -> (&'static [CapsuleState], CapsuleState, CapsuleState) {
        use CapsuleState::{Error, Missing, Paused, Pausing, Pending, Resuming, Running, Stopped, Stopping};
        match self {
            Self::Pause => (&[Running], Pausing, Paused),
            Self::Resume => (&[Paused], Resuming, Running),
            Self::Destroy => (&[Running, Paused, Missing, Error, Pending], Stopping, Stopped),
        }
    }
}

/// Carries out `verb`. A capsule that is already there stays as it is.
pub(crate) async fn carry_out(
    services: &Arc<Services>,
    actor: &Actor,
    id: CapsuleId,
    verb: Verb,
) -> Result<Arc<Model>, Error> {
    let (from, _, to) = verb.path();
    let row = super::find(&services.db, actor.team_id, id).await?;
    if row.state == to {
        return Ok(Arc::new(row));
    }
    if !from.contains(&row.state) {
        return Err(state::unfit(&row));
    }
    let (services, actor) = (services.clone(), actor.clone());
    services
        .clone()
        .run_tracked(async move {
            let began = Instant::now();
            let row = begin(&services, &row, verb).await?;
            let result = drive(&services, &actor, &row, verb, to).await;
            metrics::histogram!("wrenn_capsule_operation_seconds", "operation" => verb.name())
                .record(began.elapsed().as_secs_f64());
            result
        })
        .await
}

/// Into the state of being on the way. What goes on is put on the books of its host again.
async fn begin(services: &Services, row: &Model, verb: Verb) -> Result<Arc<Model>, Error> {
    let (from, through, _) = verb.path();
    if let (Verb::Resume, Some(host)) = (verb, row.host_id) {
        let wanted = (Demand::of_paused(row), Candidates::Home(host));
        return Ok(place(services, row, from, through, wanted).await?.1);
    }
    advance(services, row, from, Step::to(through)).await?.ok_or_else(|| state::lost(row.id))
}

async fn drive(
    services: &Arc<Services>,
    actor: &Actor,
    row: &Arc<Model>,
    verb: Verb,
    to: CapsuleState,
) -> Result<Arc<Model>, Error> {
    // A capsule that was never put on a host has nothing there to do.
    let Some(host) = row.host_id else {
        return advance(services, row, &[row.state], Step::to(to)).await?.ok_or_else(|| state::lost(row.id));
    };
    let hold = Hold::keep(services, slice::from_ref(row));
    let answered = call(services, actor, host, row.id, verb).await;
    let result = match answered {
        Ok(capsule) => {
            let active = capsule.and_then(|capsule| time::from_nanos(capsule.last_active_at_ns));
            let done = advance(services, row, &[row.state], Step::to(to).active(active)).await?;
            done.ok_or_else(|| state::lost(row.id))
        }
        Err(error) => {
            tracing::warn!(capsule = %row.id, verb = verb.name(), error = %error.chain(), "the host could not do it");
            put_back(services, row, host).await;
            Err(error)
        }
    };
    drop(hold);
    result
}

/// After a failure: the row becomes what the host says. Does the host not say, the reconciler will, once the hold
/// has run out.
pub(crate) async fn put_back(services: &Services, row: &Model, host: HostId) {
    let settled = async {
        let truth = settle::ask(services, host, row.id).await?;
        // One that was to be destroyed and could not be is not destroyed behind the back of whoever was told so.
        if row.state == CapsuleState::Stopping
            && let Some(truth) = &truth
            && let Some(state) = stable(truth.state())
        {
            let cause = truth.cause.clone().map(Into::into);
            return advance(services, row, &[row.state], Step::to(state).because(cause)).await;
        }
        settle::settle(services, row, truth.as_ref(), true).await
    };
    if let Err(error) = settled.await {
        tracing::warn!(capsule = %row.id, error = %error.chain(), "left to the reconciler");
    }
}

fn stable(state: agent::CapsuleState) -> Option<CapsuleState> {
    match state {
        agent::CapsuleState::Running => Some(CapsuleState::Running),
        agent::CapsuleState::Paused => Some(CapsuleState::Paused),
        agent::CapsuleState::Error => Some(CapsuleState::Error),
        _ => None,
    }
}

async fn call(
    services: &Services,
    actor: &Actor,
    host: HostId,
    id: CapsuleId,
    verb: Verb,
) -> Result<Option<agent::Capsule>, Error> {
    let mut client = services.hosts.get(host).await?;
    let request = requested(agent::CapsuleRef { capsule_id: id.to_string() }, &actor.request_id);
    match verb {
        Verb::Pause => answer("PauseCapsule", PAUSE, client.pause_capsule(request)).await.map(Some),
        Verb::Resume => answer("ResumeCapsule", PAUSE, client.resume_capsule(request)).await.map(Some),
        Verb::Destroy => {
            answer("DestroyCapsule", settle::DESTROY, client.destroy_capsule(request)).await?;
            Ok(None)
        }
    }
}
