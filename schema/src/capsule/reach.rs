//! The way to what runs in a capsule: its host's agent.

use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{CapsuleState, Model},
};

use super::{find, state};
use crate::{
    Code, Error, Services,
    access::Actor,
    host::{AgentClient, Placed},
};

/// Where a capsule is whose processes, files and ports can be asked for. One that is being snapshotted can be: it stands
/// still for milliseconds only. (Is it a paused one, its host says so.)
pub(crate) fn live(row: &Model) -> Option<Placed> {
    match row.state {
        CapsuleState::Running | CapsuleState::Snapshotting => Some((row.host_id?, row.id)),
        _ => None,
    }
}

/// The host of a capsule that is [`live`].
pub(crate) fn running_on(row: &Model) -> Result<HostId, Error> {
    live(row).map(|(host, _)| host).ok_or_else(|| state::unfit(row))
}

/// What a list that only a running capsule has is when its host says that it does not run (any more).
pub(crate) fn none_if_not_running<T>(list: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match list {
        Err(error) if error.code() == Code::FailedPrecondition => Ok(Vec::new()),
        list => list,
    }
}

/// The agent of the host of a running capsule of the team.
pub(crate) async fn agent_of(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
) -> Result<AgentClient, Error> {
    let row = find(&services.db, actor.team_id, id).await?;
    services.hosts.get(running_on(&row)?).await
}

/// Asks that agent by what is remembered of the way to it, without a word from the database: for what comes with every
/// key that is pressed, and for what runs for a moment only. A memory that proves wrong is given up and the call made
/// again, so one that is refused must have done nothing.
pub(crate) async fn ask_agent<T, F>(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
    call: impl Fn(AgentClient) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let route = services.routes.get(&services.db, id).await?;
    let remembered = route.filter(|route| route.team_id == actor.team_id).and_then(|route| route.live());
    if let Some(host) = remembered {
        match call(services.hosts.get(host).await?).await {
            Err(error) if matches!(error.code(), Code::NotFound | Code::FailedPrecondition) => {
                services.routes.forget(id);
            }
            answer => return answer,
        }
    }
    call(agent_of(services, actor, id).await?).await
}

/// As [`agent_of`], for the content of files.
pub(crate) async fn content_of(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
) -> Result<AgentClient, Error> {
    let row = find(&services.db, actor.team_id, id).await?;
    services.hosts.content(running_on(&row)?).await
}
