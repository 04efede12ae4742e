//! The same question about many capsules, asked of their hosts together: one call for each host.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use tonic::{Response, Status, Streaming};
use wrenn_entities::{CapsuleId, HostId};
use wrenn_proto::{MOST_CAPSULES, agent::v1::Failure};

use super::{AgentClient, answer};
use crate::{Error, Services};

/// Calls under way at a time.
const AT_ONCE: usize = 16;
/// How long a host may take for all its capsules. Those that it has answered for by then are answered for.
const CALL: Duration = Duration::from_secs(15);

/// Where a capsule is, and which it is.
pub(crate) type Placed = (HostId, CapsuleId);

/// What was answered for each capsule. That one or its host is away is not the failure of another.
pub(crate) type Answers<T> = HashMap<Placed, Result<T, Error>>;

/// A host's message about one capsule: its id, what went wrong, and what is the answer if nothing did.
pub(crate) type Said<T> = (String, Option<Failure>, T);

pub(crate) async fn each<M, T, F>(
    services: &Services,
    call: &'static str,
    capsules: Vec<Placed>,
    ask: impl Fn(AgentClient, Vec<String>) -> F,
    read: impl Fn(M) -> Said<T>,
) -> Answers<T>
where
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let mut on_host: HashMap<HostId, Vec<CapsuleId>> = HashMap::new();
    for (host, id) in capsules {
        on_host.entry(host).or_default().push(id);
    }
    let calls: Vec<_> = on_host
        .iter()
        .flat_map(|(host, ids)| ids.chunks(MOST_CAPSULES).map(|ids| (*host, ids)))
        .map(|(host, ids)| of_host(services, call, host, ids, &ask, &read))
        .collect();
    stream::iter(calls).buffer_unordered(AT_ONCE).concat().await
}

/// What one host says of some of its capsules, in one call.
async fn of_host<M, T, F>(
    services: &Services,
    call: &'static str,
    host: HostId,
    capsules: &[CapsuleId],
    ask: impl Fn(AgentClient, Vec<String>) -> F,
    read: impl Fn(M) -> Said<T>,
) -> Answers<T>
where
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let mut said = HashMap::new();
    let asked = async {
        let client = services.hosts.get(host).await?;
        let told = async {
            let mut wire =
                ask(client, capsules.iter().map(CapsuleId::to_string).collect()).await?.into_inner();
            while let Some(message) = wire.message().await? {
                let (id, failure, answer) = read(message);
                let answer = match failure {
                    Some(failure) => Err(Error::of_one(call, failure)),
                    None => Ok(answer),
                };
                said.insert(id, answer);
            }
            let end = wire.trailers().await?.unwrap_or_default();
            Ok(Response::from_parts(end, (), tonic::Extensions::default()))
        };
        answer(call, CALL, told).await
    };
    let left_out = match asked.await {
        Ok(()) => Error::Task("the host left a capsule out".to_owned()),
        Err(error) => error,
    };
    let mut answer = |id: &CapsuleId| said.remove(&id.to_string()).unwrap_or_else(|| Err(left_out.clone()));
    capsules.iter().map(|id| ((host, *id), answer(id))).collect()
}

/// The answer for the one capsule that was asked for.
pub(crate) fn only<T>(answers: Answers<T>) -> Result<T, Error> {
    answers.into_values().next().unwrap_or_else(|| Err(Error::agent_lost()))
}
