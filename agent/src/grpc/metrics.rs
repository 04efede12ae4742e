//! A capsule's load.

use std::time::Duration;

use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;

use super::relay::refusal;
use super::service::{AgentService, BoxStream};
use super::status::status;
use crate::capsule::{CapsuleError, Running, State, parse_capsule_id};
use crate::metrics::{LONGEST_RANGE, Point, Points};

pub async fn get_metrics(
    service: &AgentService,
    request: Request<agent::GetMetricsRequest>,
) -> Result<Response<agent::GetMetricsResponse>, Status> {
    let agent::GetMetricsRequest { capsule_id, range_sec } = request.into_inner();
    let found = parse_capsule_id(&capsule_id).and_then(|id| {
        let range = range(range_sec)?;
        let view = service.capsules.get(id)?;
        match view.state {
            State::Stopping | State::Stopped => {
                Err(CapsuleError::WrongState { id, state: view.state, cause: view.cause.clone() })
            }
            _ => Ok((id, range)),
        }
    });
    let (id, range) = found.map_err(|error| status(&error))?;
    let points = service.capsules.engine().meters.since(id, range);
    Ok(Response::new(agent::GetMetricsResponse { points: points.into_iter().map(to_proto).collect() }))
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
