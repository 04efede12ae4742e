//! The load of capsules.

use std::time::Duration;

use futures_util::StreamExt;
use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;

use super::each::{Answer, each};
use super::relay::refusal;
use super::service::{AgentService, BoxStream};
use super::status::status;
use crate::capsule::{CapsuleError, Running, State, parse_capsule_id};
use crate::ids::CapsuleId;
use crate::metrics::{LONGEST_RANGE, Point, Points};

pub fn get_metrics(
    service: AgentService,
    request: Request<agent::GetMetricsRequest>,
) -> Result<Response<BoxStream<agent::CapsuleMetrics>>, Status> {
    let agent::GetMetricsRequest { capsule_ids, range_sec } = request.into_inner();
    let range = range(range_sec).map_err(|error| status(&error))?;
    let answers = each(capsule_ids, move |capsule| {
        let id = measured(&service, &capsule).map_err(|error| status(&error));
        let meters = service.capsules.engine().meters.clone();
        async move {
            let id = id?;
            // Those of a capsule that has not run under this agent are read from a file.
            let points = tokio::task::spawn_blocking(move || meters.since(id, range)).await;
            let points = points.map_err(|_| Status::internal("the agent failed; its log says more"))?;
            Ok(points.into_iter().map(to_proto).collect())
        }
    })?;
    let messages = answers.map(|Answer { capsule_id, failure, answer: points }| {
        Ok(agent::CapsuleMetrics { capsule_id, failure, points })
    });
    Ok(Response::new(messages.boxed()))
}

/// A capsule of which something is known.
fn measured(service: &AgentService, capsule: &str) -> Result<CapsuleId, CapsuleError> {
    let id = parse_capsule_id(capsule)?;
    let view = service.capsules.get(id)?;
    match view.state {
        State::Stopping | State::Stopped => {
            Err(CapsuleError::WrongState { id, state: view.state, cause: view.cause.clone() })
        }
        _ => Ok(id),
    }
}

pub async fn watch_metrics(
    service: &AgentService,
    request: Request<agent::CapsuleRef>,
) -> Result<Response<BoxStream<agent::MetricPoint>>, Status> {
    let running = service.look_into(&request.get_ref().capsule_id)?;
    let points = service.capsules.engine().meters.follow(running.id);
    let points = futures_util::stream::unfold(Some((running, points)), |followed| async move {
        let (running, mut points) = followed?;
        match next(&running, &mut points).await {
            Ok(point) => Some((Ok(point), Some((running, points)))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Response::new(Box::pin(points)))
}

/// The next point that this reader has not seen.
async fn next(running: &Running, points: &mut Points) -> Result<agent::MetricPoint, Status> {
    tokio::select! {
        biased;
        end = running.handle.life.ended() => Err(refusal(running, end)),
        point = points.next() => {
            let gone = || Status::unavailable("the capsule is not measured any more");
            point.map(to_proto).ok_or_else(gone)
        }
    }
}

fn range(range_sec: u32) -> Result<Duration, CapsuleError> {
    let range = Duration::from_secs(range_sec.into());
    if !range.is_zero() && range <= LONGEST_RANGE {
        return Ok(range);
    }
    let message = format!("a range from 1 to {} seconds is wanted, not {range_sec}", LONGEST_RANGE.as_secs());
    Err(CapsuleError::Invalid { field: "rangeSec", message })
}

fn to_proto(point: Point) -> agent::MetricPoint {
    let Point { at_ns, cpu_percent, memory_bytes, disk_bytes } = point;
    agent::MetricPoint { at_ns, cpu_percent, memory_bytes, disk_bytes }
}
