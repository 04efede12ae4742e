//! One request and its answer.

use std::net::IpAddr;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, Response as HttpResponse, StatusCode, Version, header},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use wrenn_schema::{
    Code,
    access::RequestId,
    gateway::{self, Admission, Pass, Shown, Target},
};

use super::{
    CAPSULE, ERROR, FromCapsule, PORT, Proxy,
    activity::{Activity, Noted, Withdrawal},
    address::Asked,
    head,
    pool::SendError,
    problem::Problem,
    rewrite::Outside,
    tunnel::tunnel,
    visitor::{self, Visitor},
};
use crate::{cutoff::Cutoff, server::X_REQUEST_ID};

/// Bytes of what a host says to people that are read.
const SAID: usize = 16 * 1024;

impl Proxy {
    /// Carries a request and its answer.
    pub(super) async fn exchange(
        &self,
        asked: &Asked,
        request: &mut Request,
        peer: Option<IpAddr>,
        id: &RequestId,
    ) -> Result<Response, Problem> {
        let target = asked.target.clone()?;
        if asked.no_slash {
            return Ok(with_slash(asked, request));
        }
        let mut path = asked.path.clone();
        let visitor = Visitor::take(request.headers_mut(), &mut path);
        let acts = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
            || head::upgrade(request.headers()).is_some();
        let misused = visitor.by_cookie && acts && visitor::is_foreign(request.headers());
        let admission = self.admit(target, &visitor, misused, id).await?;
        let cookie = match (&visitor.by_url, admission.by) {
            (Some(token), Pass::Token(expires)) => {
                visitor::cookie(token, &asked.prefix, expires, self.public_url.is_https())
            }
            _ => None,
        };
        if let Some(cookie) = &cookie
            && is_navigation(request)
        {
            return Ok(without_token(&format!("{}{path}", asked.prefix), cookie));
        }

        let protocol = head::upgrade(request.headers());
        let client = protocol.is_some().then(|| hyper::upgrade::on(&mut *request));
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        head::pass_on(request.headers_mut(), protocol);
        head::forwarded(request.headers_mut(), peer, self.public_url.is_https(), &asked.prefix);
        address(request.headers_mut(), target, id);
        let activity = Activity::new();
        let mut withdrawn: Withdrawal = Box::pin(admission.withdrawn(&self.services));
        let mut response = tokio::select! {
            sent = self.send(&admission, target, &path, std::mem::take(request), &activity) => sent?,
            error = &mut withdrawn => return Err(error.into()),
        };

        *response.version_mut() = Version::HTTP_11;
        let outside = Outside {
            target,
            prefix: &asked.prefix,
            host: host.as_deref().unwrap_or_default(),
            scheme: if self.public_url.is_https() { "https" } else { "http" },
            domain: self.domain.as_ref(),
        };
        let mut response = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => self.switch(response, client, withdrawn)?,
            _ => {
                head::pass_on(response.headers_mut(), None);
                let mut response = response.map(|body| Body::new(Noted::new(body, activity.clone())));
                response.extensions_mut().insert(Cutoff::new(activity.over(withdrawn)));
                response
            }
        };
        outside.rewrite(response.headers_mut());
        if let Some(cookie) = cookie {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        response.extensions_mut().insert(FromCapsule);
        Ok(response)
    }

    /// `misused`: a page of another origin makes a browser do something by a cookie.
    async fn admit(
        &self,
        target: Target,
        visitor: &Visitor,
        misused: bool,
        id: &RequestId,
    ) -> Result<Admission, Problem> {
        let admitted = gateway::admit(&self.services, target, &visitor.shown, id).await;
        let admission = match admitted {
            // A cookie that has outlived its use is not what the visitor shows.
            Err(error) if visitor.by_cookie && error.code() == Code::Unauthenticated => {
                gateway::admit(&self.services, target, &Shown::default(), id).await.map_err(|_| error)?
            }
            admitted => admitted?,
        };
        if misused && matches!(admission.by, Pass::Token(_)) {
            let message = "a page of another origin may not use the preview";
            return Err(Problem::new(StatusCode::FORBIDDEN, Code::Forbidden, message));
        }
        Ok(admission)
    }

    /// Sends the request to its host, and once more when the capsule was asleep and nothing of the request is lost.
    async fn send(
        &self,
        admission: &Admission,
        target: Target,
        path: &str,
        request: Request,
        activity: &Activity,
    ) -> Result<HttpResponse<Incoming>, Problem> {
        let host = admission.host(&self.services).await?;
        let (parts, body) = request.into_parts();
        let again = body.is_end_stream().then(|| parts.clone());
        let request = Request::from_parts(parts, Body::new(Noted::new(body, activity.clone())));
        let refused = match self.send_once(&host, path, request, activity).await {
            Ok(response) => response,
            Err(error) => return Err(unreachable(&error)),
        };
        let Some(cause) = refusal(&refused) else { return Ok(refused) };
        if cause.starts_with("CAPSULE_") {
            // Whatever was thought of it was wrong.
            gateway::forget(&self.services, target);
        }
        let Some(parts) = again.filter(|_| cause == "CAPSULE_PAUSED") else {
            return Err(said(refused, &cause).await);
        };
        let host = admission.host_again(&self.services).await?;
        let request = Request::from_parts(parts, Body::empty());
        let response =
            self.send_once(&host, path, request, activity).await.map_err(|error| unreachable(&error))?;
        match refusal(&response) {
            Some(cause) => Err(said(response, &cause).await),
            None => Ok(response),
        }
    }

    async fn send_once(
        &self,
        host: &str,
        path: &str,
        mut request: Request,
        activity: &Activity,
    ) -> Result<HttpResponse<Incoming>, Unanswered> {
        *request.version_mut() = Version::HTTP_11;
        tokio::select! {
            sent = self.pool.send(host, path, request) => sent.map_err(Unanswered::Failed),
            () = activity.clone().silence() => Err(Unanswered::Silent),
        }
    }

    fn switch(
        &self,
        mut response: HttpResponse<Incoming>,
        client: Option<OnUpgrade>,
        withdrawn: Withdrawal,
    ) -> Result<Response, Problem> {
        let protocol = head::upgrade(response.headers());
        let (Some(client), Some(_)) = (client, &protocol) else {
            let message = "the capsule changed to a protocol that nobody asked for";
            return Err(Problem::new(StatusCode::BAD_GATEWAY, Code::Unavailable, message));
        };
        let guest = hyper::upgrade::on(&mut response);
        head::pass_on(response.headers_mut(), protocol);
        self.tunnels.spawn(tunnel(client, guest, withdrawn, self.stop.clone()));
        Ok(response.map(|_| Body::empty()))
    }
}

/// Why no answer came.
enum Unanswered {
    Failed(SendError),
    Silent,
}

fn unreachable(error: &Unanswered) -> Problem {
    match error {
        Unanswered::Silent => {
            let message = "the capsule did not answer in time";
            Problem::new(StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, message)
                .with_cause("PORT_SILENT")
        }
        Unanswered::Failed(error) => match error.unreachable() {
            Some(known) => known.into(),
            None => {
                tracing::debug!(error = error as &dyn std::error::Error, "a request was not answered");
                let message = "the connection to the capsule's host broke off before it answered";
                Problem::new(StatusCode::BAD_GATEWAY, Code::Unavailable, message)
                    .with_cause("HOST_AGENT_LOST")
            }
        },
    }
}

/// The code of an answer that is the host's and not the capsule's.
fn refusal(response: &HttpResponse<Incoming>) -> Option<String> {
    response.headers().get(ERROR).map(|code| String::from_utf8_lossy(code.as_bytes()).into_owned())
}

/// What a host says that could not pass a request on.
async fn said(response: HttpResponse<Incoming>, cause: &str) -> Problem {
    let body = Limited::new(response.into_body(), SAID).collect().await.ok();
    let body = body.and_then(|body| serde_json::from_slice::<serde_json::Value>(&body.to_bytes()).ok());
    let said = body.and_then(|body| body["message"].as_str().map(str::to_owned));
    Problem::of_host(cause, said)
}

/// Says to the host whom the request is for.
fn address(headers: &mut HeaderMap, target: Target, id: &RequestId) {
    let text = |text: &str| HeaderValue::from_str(text).ok();
    for (name, value) in [(CAPSULE, text(&target.capsule())), (PORT, Some(target.port().into()))] {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    if let Some(id) = text(&id.0) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// Whether a person goes to the page, rather than a program or a page asking for something.
fn is_navigation(request: &Request) -> bool {
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|accepted| accepted.contains("text/html"));
    *request.method() == Method::GET
        && head::upgrade(request.headers()).is_none()
        && request.headers().get_all(header::ACCEPT).iter().any(accepts)
}

/// To the same page without the token, which then is in no history, no log of the capsule's and no `Referer`.
fn without_token(path: &str, cookie: &HeaderValue) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(header::SET_COOKIE, cookie.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // What begins with two slashes would name a host.
    let path = format!("/{}", path.trim_start_matches('/'));
    if let Ok(path) = HeaderValue::try_from(path) {
        headers.insert(header::LOCATION, path);
    }
    response
}

/// To the same place with a slash at the end.
fn with_slash(asked: &Asked, request: &Request) -> Response {
    let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
    let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
    if let Ok(place) = HeaderValue::try_from(format!("{}/{query}", asked.prefix)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}
