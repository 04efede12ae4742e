//! One request and its answer, or the tunnel that they become.

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

use super::head::{self, Target};
use super::refusal::Refusal;
use super::upstream::{DialError, dial_error};
use crate::capsule::{CapsuleRegistry, Running};

/// Bytes for each direction of a tunnel, which has them from its beginning to its end.
const TUNNEL: usize = 64 << 10;

/// The body of an answer, of the guest's or of this host's.
pub type Answer = UnsyncBoxBody<Bytes, hyper::Error>;

/// Passes a request on and its answer back.
pub async fn exchange(
    capsules: &CapsuleRegistry,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Refusal> {
    let target = Target::of(request.headers())?;
    check(&request)?;
    let running = capsules.running(target.capsule)?;
    let in_flight = running.handle.life.in_flight();

    let protocol = head::upgrade(request.headers());
    let client = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
    head::pass_on(request.headers_mut(), protocol);
    *request.version_mut() = Version::HTTP_11;
    let sent = running.handle.upstream().send(target.port, request).await;
    let mut response = match sent {
        Ok(response) => response,
        Err(error) => return Err(explain(&running, target.port, error).await),
    };

    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = head::upgrade(response.headers());
        let (Some(client), Some(_)) = (client, &protocol) else {
            return Err(Refusal::Invalid("the guest changed to a protocol that nobody asked for".to_owned()));
        };
        let guest = hyper::upgrade::on(&mut response);
        head::pass_on(response.headers_mut(), protocol);
        // Not in flight any more: it would hold up a pause to the very end.
        tokio::spawn(tunnel(running, client, guest));
        return Ok(response.map(BodyExt::boxed_unsync));
    }
    head::pass_on(response.headers_mut(), None);
    let held = (running, in_flight);
    Ok(response.map(|body| {
        let body = body.map_frame(move |frame| {
            // In use until the last of the answer was passed on.
            let _held = &held;
            frame
        });
        body.boxed_unsync()
    }))
}

fn check(request: &Request<Incoming>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT || !request.uri().path().starts_with('/') {
        return Err(Refusal::Invalid("a request for a path is wanted".to_owned()));
    }
    if request.headers().get_all(HOST).iter().count() > 1 {
        return Err(Refusal::Invalid("the header host is wanted once".to_owned()));
    }
    Ok(())
}

/// Why a request got no answer.
async fn explain(running: &Running, port: u16, error: hyper_util::client::legacy::Error) -> Refusal {
    let refusal = match dial_error(&error) {
        Some(DialError::Refused(_)) => return Refusal::NotListening(port),
        Some(DialError::Silent) => Refusal::Silent(port),
        _ => Refusal::Broken { port, source: error },
    };
    // A connection that breaks is often the first that is seen of a life's end.
    match running.handle.life.end_behind_it().await {
        Some(end) => Refusal::LifeEnded { id: running.id, end },
        None => refusal,
    }
}

/// Bytes both ways, until one side ends or the life does; activity as long as it lasts.
async fn tunnel(running: Running, client: OnUpgrade, guest: OnUpgrade) {
    let upgraded = tokio::select! {
        upgraded = async { tokio::try_join!(client, guest) } => upgraded,
        _ = running.handle.life.ended() => return,
    };
    match upgraded {
        Ok((client, guest)) => {
            let (mut client, mut guest) = (TokioIo::new(client), TokioIo::new(guest));
            tokio::select! {
                copied = copy_bidirectional_with_sizes(&mut client, &mut guest, TUNNEL, TUNNEL) => {
                    // Either side may go whenever it likes.
                    tracing::debug!(capsule = %running.id, ?copied, "a tunnel ended");
                }
                _ = running.handle.life.ended() => {}
            }
        }
        Err(error) => tracing::debug!(capsule = %running.id, %error, "an upgrade was not gone through with"),
    }
}
