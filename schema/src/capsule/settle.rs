//! Making a row agree with what its host says: the host's agent is the truth about what runs there.
//!
//! Only rows that no operation holds are settled, and the truth is asked *after* the row was read: when the row is
//! still the same at the change, nothing came between, so what the host said is newer than what the row says.

use std::{sync::Arc, time::Duration};

use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, prelude::Expr};
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{self, CapsuleState, Model},
    time::{self, now},
};
use wrenn_proto::agent::v1 as agent;

use super::state::{self, Cause, Step, advance};
use crate::{
    Code, Error, Services,
    access::RequestId,
    host::{answer, requested},
};

/// How long a host may take to say how a capsule is.
const ASK: Duration = Duration::from_secs(10);
/// How long removing a capsule may take.
pub(crate) const DESTROY: Duration = Duration::from_secs(60);
/// Activity is written when the row is this far behind.
const ACTIVITY_EVERY: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

/// Cause of a capsule whose host does not know it any more.
pub(crate) const LOST_BY_HOST: &str = "LOST_BY_HOST";
/// Cause of a capsule whose creation was cut off.
pub(crate) const CREATE_INTERRUPTED: &str = "CREATE_INTERRUPTED";
/// Cause of a capsule whose host is out of reach.
pub(crate) const HOST_UNREACHABLE: &str = "HOST_UNREACHABLE";

/// What a host says about one capsule. `None`: it does not know it.
pub(crate) type Truth<'a> = Option<&'a agent::Capsule>;

/// What has to be done about a row, given the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Agree,
    /// The host is in the middle of something.
    Wait,
    Become(CapsuleState, Option<Cause>),
    /// The host has what should not be there.
    Remove,
}

fn lost() -> Cause {
    Cause::new(LOST_BY_HOST, "the host does not know the capsule any more")
}

/// Compares a row that nobody holds with the truth.
pub(crate) fn verdict(row: &Model, truth: Truth<'_>) -> Verdict {
    use agent::CapsuleState as Host;
    use capsule::CapsuleState as Row;
    let Some(truth) = truth else {
        return match row.state {
            Row::Stopped | Row::Error => Verdict::Agree,
            Row::Stopping => Verdict::Become(Row::Stopped, None),
            Row::Pending | Row::Starting => Verdict::Become(
                Row::Error,
                Some(Cause::new(
                    CREATE_INTERRUPTED,
                    "the creation was cut off before the host had the capsule",
                )),
            ),
            Row::Running | Row::Pausing | Row::Paused | Row::Resuming | Row::Snapshotting | Row::Missing => {
                Verdict::Become(Row::Stopped, Some(lost()))
            }
        };
    };
    let cause = truth.cause.clone().map(Cause::from);
    match (truth.state(), row.state) {
        (Host::Starting | Host::Pausing | Host::Resuming | Host::Stopping | Host::Unspecified, _) => {
            Verdict::Wait
        }
        (Host::Stopped, Row::Stopped | Row::Error) => Verdict::Agree,
        (Host::Stopped, Row::Stopping) => Verdict::Become(Row::Stopped, None),
        (Host::Stopped, Row::Starting) => Verdict::Become(Row::Error, Some(cause.unwrap_or_else(lost))),
        (Host::Stopped, _) => Verdict::Become(Row::Stopped, Some(cause.unwrap_or_else(lost))),
        // What nobody is told of any more, or never could use, is taken away.
        (_, Row::Stopped | Row::Stopping) => Verdict::Remove,
        (_, Row::Error) if row.started_at.is_none() => Verdict::Remove,
        (Host::Running, Row::Running) | (Host::Paused, Row::Paused) | (Host::Error, Row::Error) => {
            Verdict::Agree
        }
        (Host::Running, _) => Verdict::Become(Row::Running, None),
        (Host::Paused, _) => Verdict::Become(Row::Paused, cause),
        (Host::Error, _) => Verdict::Become(
            Row::Error,
            Some(cause.unwrap_or_else(|| Cause::new("UNKNOWN", "the host did not say why"))),
        ),
    }
}

/// Carries out the verdict on a row. `owned`: the caller itself holds the row. The row as it is now, if it changed.
pub(crate) async fn settle(
    services: &Services,
    row: &Model,
    truth: Truth<'_>,
    owned: bool,
) -> Result<Option<Arc<Model>>, Error> {
    if !owned && state::is_held(row) {
        return Ok(None);
    }
    let (to, cause) = match verdict(row, truth) {
        Verdict::Agree | Verdict::Wait => return Ok(None),
        Verdict::Become(to, cause) => (to, cause),
        Verdict::Remove => {
            if let Some(host) = row.host_id {
                remove(services, host, row.id, &RequestId(format!("settle-{}", row.id))).await?;
            }
            if row.state != CapsuleState::Stopping {
                return Ok(None);
            }
            (CapsuleState::Stopped, None)
        }
    };
    let mut step = Step::to(to).because(cause);
    if let Some(truth) = truth {
        let started =
            row.started_at.or_else(|| time::from_nanos(truth.started_at_ns)).or_else(|| Some(now()));
        step = step
            .started(started.filter(|_| matches!(to, CapsuleState::Running | CapsuleState::Paused)))
            .active(time::from_nanos(truth.last_active_at_ns));
    }
    if !owned {
        step = step.only_if_free();
    }
    advance(services, row, &[row.state], step).await
}

/// Asks the host how the capsule is.
pub(crate) async fn ask(
    services: &Services,
    host: HostId,
    id: CapsuleId,
) -> Result<Option<agent::Capsule>, Error> {
    let mut client = services.hosts.get(host).await?;
    let request =
        requested(agent::CapsuleRef { capsule_id: id.to_string() }, &RequestId(format!("ask-{id}")));
    match answer("GetCapsule", ASK, client.get_capsule(request)).await {
        Ok(capsule) => Ok(Some(capsule)),
        Err(error) if error.code() == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a capsule away from a host. One that is not there is fine.
pub(crate) async fn remove(
    services: &Services,
    host: HostId,
    id: CapsuleId,
    request_id: &RequestId,
) -> Result<(), Error> {
    let mut client = services.hosts.get(host).await?;
    let request = requested(agent::CapsuleRef { capsule_id: id.to_string() }, request_id);
    answer("DestroyCapsule", DESTROY, client.destroy_capsule(request)).await?;
    Ok(())
}

/// Notes activity that the host knows of, when the row is far enough behind.
pub(crate) async fn note_activity(
    services: &Services,
    row: &Model,
    truth: &agent::Capsule,
) -> Result<(), Error> {
    let Some(active) = time::from_nanos(truth.last_active_at_ns) else { return Ok(()) };
    if row.last_active_at.is_some_and(|known| active - known < ACTIVITY_EVERY) {
        return Ok(());
    }
    let written = capsule::Entity::update_many()
        .col_expr(capsule::Column::LastActiveAt, Expr::value(active))
        .filter(capsule::Column::Id.eq(row.id))
        .filter(
            Condition::any()
                .add(capsule::Column::LastActiveAt.is_null())
                .add(capsule::Column::LastActiveAt.lt(active)),
        )
        .exec_with_returning(&services.db)
        .await?;
    if let Some(row) = written.into_iter().next() {
        services.bus.publish(crate::bus::Change::Capsule(Arc::new(row)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wrenn_entities::{TeamId, TemplateId, id::TypedId, json::Labels};

    use super::*;

    fn row(state: CapsuleState, started: bool) -> Model {
        Model {
            id: CapsuleId::generate(),
            team_id: TeamId::PLATFORM,
            template_id: TemplateId::MINIMAL,
            host_id: Some(HostId::generate()),
            parent_id: None,
            fork_id: None,
            name: None,
            state,
            generation: 1,
            cause_code: None,
            cause_message: None,
            vcpus: 1,
            memory_mib: 256,
            disk_mib: 1024,
            timeout_sec: 0,
            auto_resume: false,
            labels: Labels::default(),
            created_by: None,
            created_at: now(),
            updated_at: now(),
            started_at: started.then(now),
            last_active_at: None,
            operation_until: None,
        }
    }

    fn says(state: agent::CapsuleState) -> agent::Capsule {
        agent::Capsule { state: state.into(), ..Default::default() }
    }

    #[test]
    fn no_state_is_a_dead_end() {
        use sea_orm::Iterable;
        for state in CapsuleState::iter().filter(|state| state::is_transitional(*state)) {
            let unknown = verdict(&row(state, true), None);
            assert!(
                matches!(unknown, Verdict::Become(CapsuleState::Stopped | CapsuleState::Error, _)),
                "{state:?}: {unknown:?}"
            );
            for host in [
                agent::CapsuleState::Running,
                agent::CapsuleState::Paused,
                agent::CapsuleState::Error,
                agent::CapsuleState::Stopped,
            ] {
                let verdict = verdict(&row(state, true), Some(&says(host)));
                assert!(
                    matches!(verdict, Verdict::Become(..) | Verdict::Remove),
                    "{state:?}, {host:?}: {verdict:?}"
                );
            }
        }
    }

    #[test]
    fn what_agrees_is_left_alone() {
        for (state, host) in [
            (CapsuleState::Running, agent::CapsuleState::Running),
            (CapsuleState::Paused, agent::CapsuleState::Paused),
            (CapsuleState::Stopped, agent::CapsuleState::Stopped),
            (CapsuleState::Error, agent::CapsuleState::Error),
        ] {
            assert_eq!(verdict(&row(state, true), Some(&says(host))), Verdict::Agree);
        }
    }

    #[test]
    fn what_the_host_keeps_of_a_capsule_that_is_gone_is_removed() {
        let running = says(agent::CapsuleState::Running);
        assert_eq!(verdict(&row(CapsuleState::Stopped, true), Some(&running)), Verdict::Remove);
        assert_eq!(verdict(&row(CapsuleState::Stopping, true), Some(&running)), Verdict::Remove);
        assert_eq!(verdict(&row(CapsuleState::Error, false), Some(&running)), Verdict::Remove);
    }

    #[test]
    fn missing_comes_back() {
        let row = row(CapsuleState::Missing, true);
        let running = says(agent::CapsuleState::Running);
        assert_eq!(verdict(&row, Some(&running)), Verdict::Become(CapsuleState::Running, None));
        assert!(
            matches!(verdict(&row, None), Verdict::Become(CapsuleState::Stopped, Some(cause)) if cause.code == LOST_BY_HOST)
        );
    }
}
