//! What capsules use: processor, memory, disk. To look is no activity.

mod subscription;

use async_graphql::{Enum, SimpleObject};
use chrono::{DateTime, Utc};
use wrenn_entities::{
    capsule::{CapsuleState, Model},
    time,
};
use wrenn_proto::agent::v1 as agent;

pub use self::subscription::MetricsSubscription;
use crate::{
    Error, Services,
    access::RequestId,
    capsule::state,
    host::{AgentClient, Answers, Placed, each, requested},
    scalar::BigInt,
};

/// What a capsule used at a moment, or on average since the point before.
#[derive(SimpleObject, Clone, Debug)]
pub struct CapsuleMetricPoint {
    at: DateTime<Utc>,
    /// Of one processor of the host: 200 is two of them.
    cpu_percent: f64,
    /// Of the host, resident.
    memory_bytes: BigInt,
    /// What its disk really takes on the host.
    disk_bytes: BigInt,
}

impl From<agent::MetricPoint> for CapsuleMetricPoint {
    fn from(point: agent::MetricPoint) -> Self {
        Self {
            at: time::from_nanos(point.at_ns).unwrap_or_default(),
            cpu_percent: point.cpu_percent,
            memory_bytes: BigInt(point.memory_bytes),
            disk_bytes: BigInt(point.disk_bytes),
        }
    }
}

/// How far back. Points are 500 ms apart up to 10 minutes, 30 s up to 2 hours, 5 minutes up to a day.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsRange {
    #[graphql(name = "M5")]
    M5,
    #[graphql(name = "M10")]
    M10,
    #[graphql(name = "H1")]
    H1,
    #[graphql(name = "H2")]
    H2,
    #[graphql(name = "H6")]
    H6,
    #[graphql(name = "H12")]
    H12,
    #[graphql(name = "H24")]
    H24,
}

impl MetricsRange {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::H24 as usize + 1;

    fn seconds(self) -> u32 {
        60 * match self {
            Self::M5 => 5,
            Self::M10 => 10,
            Self::H1 => 60,
            Self::H2 => 2 * 60,
            Self::H6 => 6 * 60,
            Self::H12 => 12 * 60,
            Self::H24 => 24 * 60,
        }
    }
}

/// The points of running or paused capsules, oldest first.
pub(crate) async fn points(
    services: &Services,
    request_id: &RequestId,
    capsules: Vec<Placed>,
    range: MetricsRange,
) -> Answers<Vec<CapsuleMetricPoint>> {
    let range_sec = range.seconds();
    let ask = |mut client: AgentClient, capsule_ids| async move {
        client.get_metrics(requested(agent::GetMetricsRequest { capsule_ids, range_sec }, request_id)).await
    };
    let read = |of: agent::CapsuleMetrics| {
        (of.capsule_id, of.failure, of.points.into_iter().map(CapsuleMetricPoint::from).collect())
    };
    each(services, "GetMetrics", capsules, ask, read).await
}

/// Where it is known what the capsule used.
pub(crate) fn measured(row: &Model) -> Result<Placed, Error> {
    match (row.state, row.host_id) {
        (CapsuleState::Missing, _) => Err(state::unfit(row)),
        (CapsuleState::Stopped | CapsuleState::Error, _) | (_, None) => {
            Err(Error::not_found(format!("nothing is measured of the capsule {} in its state", row.id)))
        }
        (_, Some(host)) => Ok((host, row.id)),
    }
}
