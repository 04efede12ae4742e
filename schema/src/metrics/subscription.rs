//! What a capsule uses, live.

use std::time::Duration;

use async_graphql::{Context, ID, Subscription};
use futures_util::Stream;
use wrenn_proto::agent::v1 as agent;

use super::{CapsuleMetricPoint, MetricsRange, measured, points};
use crate::{
    Error,
    access::{Actor, Member, caller, services, while_allowed},
    capsule::{self, reach::running_on},
    error::parse_id,
    host::{answer, only, requested},
};

const OPEN: Duration = Duration::from_secs(15);

#[derive(Default)]
pub struct MetricsSubscription;

#[Subscription]
impl MetricsSubscription {
    /// The points of the range, then each new one, every 500 ms; ends when the capsule does not run any more.
    #[graphql(guard = "Member")]
    async fn capsule_metrics(
        &self,
        ctx: &Context<'_>,
        id: ID,
        range: MetricsRange,
    ) -> Result<impl Stream<Item = Result<CapsuleMetricPoint, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let actor = Actor::of(ctx)?;
        let row = capsule::find(&services.db, actor.team_id, parse_id("id", &id)?).await?;
        let mut client = services.hosts.get(running_on(&row)?).await?;
        // What is to come is asked for first, so that nothing is missed between.
        let request = requested(agent::CapsuleRef { capsule_id: row.id.to_string() }, &actor.request_id);
        let mut live = answer("WatchMetrics", OPEN, client.watch_metrics(request)).await?;
        let known = only(points(&services, &actor.request_id, vec![measured(&row)?], range).await)?;
        let inner = async_stream::try_stream! {
            let last = known.last().map(|point| point.at);
            for point in known {
                yield point;
            }
            loop {
                let next = live.message().await.map_err(|status| Error::from_agent("WatchMetrics", status))?;
                let Some(next) = next else { break };
                let point = CapsuleMetricPoint::from(next);
                if last.is_none_or(|last| point.at > last) {
                    yield point;
                }
            }
        };
        Ok(while_allowed(services, caller(ctx)?.clone(), inner))
    }
}
