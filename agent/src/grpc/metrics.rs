//! A capsule's load.

use std::time::Duration;

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use wrenn_proto::agent::v1 as agent;

use super::relay::refusal;
use super::service::{AgentService, BoxStream};
use super::status::status;
use crate::capsule::{CapsuleError, Running, State, parse_capsule_id};
use crate::metrics::{LONGEST_RANGE, Point};

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
    let mut newest = service.capsules.engine().meters.watch(running.id);
    // What is there already is new to this reader.
    newest.mark_changed();
    let points = futures_util::stream::unfold(Some((running, newest)), |watched| async move {
        let (running, mut newest) = watched?;
        match next(&running, &mut newest).await {
            Ok(point) => Some((Ok(point), Some((running, newest)))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Response::new(Box::pin(points)))
}

/// The newest point that this reader has not seen.
async fn next(
    running: &Running,
    newest: &mut watch::Receiver<Option<Point>>,
) -> Result<agent::MetricPoint, Status> {
    loop {
        tokio::select! {
            biased;
            end = running.handle.life.ended() => return Err(refusal(running, end)),
            changed = newest.changed() => {
                if changed.is_err() {
                    return Err(Status::unavailable("the capsule is not measured any more"));
                }
                let point = *newest.borrow_and_update();
                if let Some(point) = point {
                    return Ok(to_proto(point));
                }
            }
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
