//! What listens in the capsules of a played agent, behind the agent's own proxy.

use std::{convert::Infallible, sync::Arc};

use axum::body::{Body, Bytes};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};
use wrenn_proto::agent::v1::CapsuleState;

use crate::agent::PlayedAgent;

/// Nothing listens there.
pub const CLOSED: &str = "81";

/// Serves what the control plane connects for, until the agent ends. `more`: permits for the events of `/events`, and for
/// one `/flood` at a time.
pub fn serve(agent: Arc<PlayedAgent>, more: Arc<Semaphore>) {
    tokio::spawn(async move {
        while let Some(connection) = agent.http_connection().await {
            let (playing, more) = (agent.clone(), more.clone());
            let service = service_fn(move |request| {
                let (agent, more) = (playing.clone(), more.clone());
                async move { Ok::<_, Infallible>(answer(&agent, more, request).await) }
            });
            let agent = agent.clone();
            tokio::spawn(async move {
                let served =
                    http1::Builder::new().serve_connection(TokioIo::new(connection), service).with_upgrades();
                tokio::select! {
                    // However it ends.
                    _ = served => {}
                    () = agent.killed() => {}
                }
            });
        }
    });
}

fn refused(status: u16, code: &'static str) -> Response<Body> {
    let body = format!("{{\"code\":\"{code}\",\"message\":\"the agent says {code}\"}}");
    let response = Response::builder().status(status).header("x-wrenn-error", code);
    response.body(Body::from(body)).expect("a response")
}

async fn answer(agent: &PlayedAgent, more: Arc<Semaphore>, mut request: Request<Incoming>) -> Response<Body> {
    let text = |name: &str| {
        request.headers().get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned()
    };
    match agent.state_of(&text("x-wrenn-capsule")) {
        None => return refused(404, "CAPSULE_NOT_FOUND"),
        Some(CapsuleState::Running) => {}
        Some(_) => return refused(503, "CAPSULE_PAUSED"),
    }
    if text("x-wrenn-port") == CLOSED {
        return refused(502, "PORT_CLOSED");
    }
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let response = Response::builder();
    match path.as_str() {
        "/redirect" => {
            let response = response.status(302).header(header::LOCATION, query);
            response.body(Body::empty()).expect("a response")
        }
        // Paused with the first request under way; another one is answered.
        "/cut-off" if more.available_permits() > 0 => {
            more.forget_permits(1);
            refused(503, "CAPSULE_PAUSED_MEANWHILE")
        }
        "/cookies" => response
            .header(header::SET_COOKIE, "a=b; Path=/; Domain=localhost")
            .header(header::SET_COOKIE, "wrenn_preview=stolen; Path=/")
            .body(Body::empty())
            .expect("a response"),
        "/origin" => response
            .header("service-worker-allowed", "/")
            .header("clear-site-data", "\"*\"")
            .header("strict-transport-security", "max-age=1")
            .header("x-own", "1")
            .body(Body::empty())
            .expect("a response"),
        "/events" => {
            let events = stream::unfold((more, 0), |(more, sent)| async move {
                more.acquire().await.ok()?.forget();
                let event = Bytes::from(format!("data: {sent}\n\n"));
                Some((Ok::<_, Infallible>(event), (more, sent + 1)))
            });
            let response = response.header(header::CONTENT_TYPE, "text/event-stream");
            response.body(Body::from_stream(events.boxed())).expect("a response")
        }
        "/flood" => {
            let permit = more.acquire_owned().await.expect("is never closed");
            let flood = stream::repeat_with(move || {
                let _until_it_ends = &permit;
                Ok::<_, Infallible>(Bytes::from_static(&[0; 64 * 1024]))
            });
            Response::new(Body::from_stream(flood))
        }
        "/upload" => {
            let (mut body, mut length) = (request.into_body(), 0);
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.data_ref().map_or(0, Bytes::len);
            }
            Response::new(Body::from(length.to_string()))
        }
        "/tunnel" => {
            let protocol = request.headers().get(header::UPGRADE).cloned();
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgraded.await.expect("is upgraded"));
                let mut bytes = [0; 1024];
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    stream.write_all(&bytes[..read]).await.expect("echoes");
                }
            });
            let response = response.status(StatusCode::SWITCHING_PROTOCOLS);
            let response = response.header(header::CONNECTION, "upgrade");
            let protocol = protocol.unwrap_or(HeaderValue::from_static("none"));
            response.header(header::UPGRADE, protocol).body(Body::empty()).expect("a response")
        }
        "/fails" => response.status(500).body(Body::from("the guest fails")).expect("a response"),
        // The request as it arrived.
        _ => {
            let mut seen = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                seen.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            }
            Response::new(Body::from(seen))
        }
    }
}
