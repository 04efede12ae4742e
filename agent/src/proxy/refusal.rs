//! Why a request was not passed on, and how the control plane is told.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::ERROR;
use super::exchange::Answer;
use crate::capsule::{CapsuleError, LifeEnd, State};
use crate::ids::CapsuleId;

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(String),
    #[error("port {0} is not for others")]
    Reserved(u16),
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
    /// Its life ended before it answered.
    #[error("capsule {id} {}", ending(.end))]
    LifeEnded { id: CapsuleId, end: LifeEnd },
    #[error("nothing listens on port {0} of the capsule")]
    NotListening(u16),
    #[error("port {0} of the capsule does not answer")]
    Silent(u16),
    #[error("what listens on port {port} of the capsule broke off")]
    Broken {
        port: u16,
        #[source]
        source: hyper_util::client::legacy::Error,
    },
}

fn ending(end: &LifeEnd) -> String {
    match end {
        LifeEnd::Paused => "was paused".to_owned(),
        LifeEnd::AgentStopping => "cannot be reached: its agent is stopping".to_owned(),
        LifeEnd::Lost(cause) => format!("is gone: {}", cause.message),
    }
}

impl Refusal {
    fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Invalid(_) | Self::Capsule(CapsuleError::Invalid { .. }) => {
                (StatusCode::BAD_REQUEST, "INVALID_REQUEST")
            }
            Self::Reserved(_) => (StatusCode::FORBIDDEN, "PORT_RESERVED"),
            Self::Capsule(CapsuleError::NotFound(_)) => (StatusCode::NOT_FOUND, "CAPSULE_NOT_FOUND"),
            Self::Capsule(CapsuleError::WrongState { state: State::Pausing | State::Paused, .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "CAPSULE_PAUSED")
            }
            // The guest has the request, and may answer it once it goes on.
            Self::LifeEnded { end: LifeEnd::Paused, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "CAPSULE_PAUSED_MEANWHILE")
            }
            Self::LifeEnded { end: LifeEnd::AgentStopping, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "AGENT_STOPPING")
            }
            Self::LifeEnded { end: LifeEnd::Lost(_), .. } => (StatusCode::BAD_GATEWAY, "CAPSULE_LOST"),
            Self::Capsule(_) => (StatusCode::SERVICE_UNAVAILABLE, "CAPSULE_NOT_RUNNING"),
            Self::NotListening(_) => (StatusCode::BAD_GATEWAY, "PORT_CLOSED"),
            Self::Silent(_) => (StatusCode::GATEWAY_TIMEOUT, "PORT_SILENT"),
            Self::Broken { .. } => (StatusCode::BAD_GATEWAY, "CONNECTION_BROKEN"),
        }
    }

    /// With the code in a header, and both in the body for a person to read.
    pub fn answer(&self) -> Response<Answer> {
        let (status, code) = self.code();
        let body = serde_json::json!({ "code": code, "message": self.to_string() }).to_string();
        let mut response =
            Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(ERROR, HeaderValue::from_static(code));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::Cause;

    #[tokio::test]
    async fn each_refusal_has_a_code_and_says_why() {
        let id = CapsuleId::from_u128(1);
        let wrong = |state| Refusal::Capsule(CapsuleError::WrongState { id, state, cause: None });
        for (refusal, status, code) in [
            (Refusal::Invalid("…".into()), 400, "INVALID_REQUEST"),
            (Refusal::Reserved(49983), 403, "PORT_RESERVED"),
            (Refusal::Capsule(CapsuleError::NotFound(id)), 404, "CAPSULE_NOT_FOUND"),
            (wrong(State::Paused), 503, "CAPSULE_PAUSED"),
            (wrong(State::Error), 503, "CAPSULE_NOT_RUNNING"),
            (Refusal::LifeEnded { id, end: LifeEnd::Paused }, 503, "CAPSULE_PAUSED_MEANWHILE"),
            (Refusal::LifeEnded { id, end: LifeEnd::Lost(Cause::new("VMM_DIED", "…")) }, 502, "CAPSULE_LOST"),
            (Refusal::NotListening(80), 502, "PORT_CLOSED"),
            (Refusal::Silent(80), 504, "PORT_SILENT"),
        ] {
            let answer = refusal.answer();
            assert_eq!((answer.status().as_u16(), answer.headers()[ERROR].to_str().unwrap()), (status, code));
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["code"], &body["message"]), (&code.into(), &refusal.to_string().into()));
        }
    }
}
