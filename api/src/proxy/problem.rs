//! Why a request was not carried: as a page for people, as JSON, in GraphQL's shape, for programs.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use wrenn_schema::{Code, Error, access::RequestId};

use super::ERROR;

/// The page loads nothing and runs nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors *";

/// Who reads the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    Person,
    Program,
}

impl Reader {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let page = |value: &HeaderValue| value.to_str().is_ok_and(|accepted| accepted.contains("text/html"));
        if headers.get_all(header::ACCEPT).iter().any(page) { Self::Person } else { Self::Program }
    }
}

/// What went wrong.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    /// Stable, as `PORT_CLOSED`.
    cause: Option<String>,
    message: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code: code.as_str(), cause: None, message: message.into() }
    }

    pub(super) fn with_cause(mut self, cause: &str) -> Self {
        self.cause = Some(cause.to_owned());
        self
    }

    /// What a host answered that could not pass a request on. `cause`: its code; `said`: what it says to people.
    pub(super) fn of_host(cause: &str, said: Option<String>) -> Self {
        let (status, code) = match cause {
            "INVALID_REQUEST" => (StatusCode::BAD_REQUEST, Code::InvalidInput),
            "PORT_RESERVED" => (StatusCode::FORBIDDEN, Code::Forbidden),
            "CAPSULE_NOT_FOUND" => (StatusCode::NOT_FOUND, Code::NotFound),
            "CAPSULE_PAUSED" | "CAPSULE_NOT_RUNNING" => (StatusCode::CONFLICT, Code::FailedPrecondition),
            "PORT_SILENT" => (StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded),
            // Not repeated by anybody but who knows what it does: the guest has it.
            "AGENT_STOPPING" | "CAPSULE_PAUSED_MEANWHILE" => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            _ => (StatusCode::BAD_GATEWAY, Code::Unavailable),
        };
        let said = said.unwrap_or_else(|| "the capsule's host could not pass the request on".to_owned());
        Self::new(status, code, said).with_cause(cause)
    }

    pub(super) fn answer(self, reader: Reader, id: &RequestId) -> Response {
        let Self { status, code, cause, message } = self;
        let name = cause.clone().unwrap_or_else(|| code.to_owned());
        let mut response = match reader {
            Reader::Person => page(status, &name, &message, id),
            Reader::Program => {
                let mut extensions = json!({ "code": code, "requestId": id.0 });
                if let Some(cause) = cause {
                    extensions["cause"] = cause.into();
                }
                Json(json!({ "errors": [{ "message": message, "extensions": extensions }] })).into_response()
            }
        };
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        if let Ok(name) = HeaderValue::try_from(name) {
            headers.insert(ERROR, name);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        let status = match (error.code(), error.cause()) {
            (Code::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
            (Code::Forbidden, _) => StatusCode::FORBIDDEN,
            (Code::NotFound, _) => StatusCode::NOT_FOUND,
            (Code::Conflict | Code::FailedPrecondition, _) => StatusCode::CONFLICT,
            (Code::InvalidInput, _) => StatusCode::BAD_REQUEST,
            (Code::Unavailable, Some("HOST_AGENT_LOST")) => StatusCode::BAD_GATEWAY,
            (Code::Unavailable | Code::ResourceExhausted, _) => StatusCode::SERVICE_UNAVAILABLE,
            (Code::DeadlineExceeded, _) => StatusCode::GATEWAY_TIMEOUT,
            (Code::Internal, _) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = match error {
            Error::Refused(refusal) => refusal.message.clone(),
            // What is not for others is for the log.
            other => {
                tracing::error!(error = %other.chain(), "a request could not be carried");
                "something went wrong on the server; its log has the details".to_owned()
            }
        };
        Self { status, code: error.code().as_str(), cause: error.cause().map(str::to_owned), message }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

fn page(status: StatusCode, name: &str, message: &str, id: &RequestId) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let (message, name, id) = (escaped(message), escaped(name), escaped(&id.0));
    let number = status.as_u16();
    let body = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{number} {title}</title>\n\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}}\
         small{{opacity:.6}}@media(prefers-color-scheme:dark){{body{{background:#111;color:#eee}}}}</style>\n\
         <h1>{title}</h1>\n<p>{message}.</p>\n<p><small>{number} {name} · {id}</small></p>\n</html>\n"
    );
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, body).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn answered(reader: Reader) -> (StatusCode, HeaderMap, String) {
        let problem = Problem::of_host("PORT_CLOSED", Some("<nothing> listens".to_owned()));
        let (head, body) = problem.answer(reader, &RequestId("r-1".to_owned())).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn people_get_a_page_and_programs_get_json() {
        let (status, headers, body) = answered(Reader::Person).await;
        assert_eq!((status, headers[ERROR].to_str().unwrap()), (StatusCode::BAD_GATEWAY, "PORT_CLOSED"));
        assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(body.contains("&lt;nothing&gt; listens.") && body.contains("PORT_CLOSED · r-1"), "{body}");

        let (status, headers, body) = answered(Reader::Program).await;
        assert_eq!((status, headers[ERROR].to_str().unwrap()), (StatusCode::BAD_GATEWAY, "PORT_CLOSED"));
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let extensions = json!({ "code": "UNAVAILABLE", "cause": "PORT_CLOSED", "requestId": "r-1" });
        assert_eq!(body["errors"][0]["extensions"], extensions);
    }

    #[test]
    fn browsers_are_people() {
        let reader = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            Reader::of(&headers)
        };
        assert_eq!(reader("text/html,application/xhtml+xml;q=0.9"), Reader::Person);
        assert_eq!(reader("*/*"), Reader::Program);
    }
}
