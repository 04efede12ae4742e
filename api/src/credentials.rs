//! Reading credentials from where clients put them: headers, and the payload of `connection_init`.

use axum::http::{HeaderMap, HeaderName, header};
use secrecy::SecretString;
use serde_json::{Map, Value};
use wrenn_schema::access::Credentials;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// From `X-API-Key` and `Authorization: Bearer …`.
pub fn from_headers(headers: &HeaderMap) -> Credentials {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    Credentials {
        api_key: text(API_KEY).and_then(secret),
        bearer: text(header::AUTHORIZATION).and_then(bearer),
    }
}

/// From `apiKey` and `authorization` (`Bearer …`).
pub fn from_payload(payload: &Map<String, Value>) -> Credentials {
    let text = |name| payload.get(name).and_then(Value::as_str);
    Credentials { api_key: text("apiKey").and_then(secret), bearer: text("authorization").and_then(bearer) }
}

/// Whether there are none.
pub fn is_empty(credentials: &Credentials) -> bool {
    credentials.api_key.is_none() && credentials.bearer.is_none()
}

fn secret(value: &str) -> Option<SecretString> {
    let value = value.trim();
    (!value.is_empty()).then(|| SecretString::from(value))
}

/// The token of an `Authorization` value; the scheme in any case.
fn bearer(value: &str) -> Option<SecretString> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret(token)).flatten()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;

    fn exposed(credentials: &Credentials) -> (Option<&str>, Option<&str>) {
        let expose =
            |secret: &'_ Option<SecretString>| secret.as_ref().map(|it| it.expose_secret().to_owned());
        let leak = |text: Option<String>| text.map(|it| &*Box::leak(it.into_boxed_str()));
        (leak(expose(&credentials.api_key)), leak(expose(&credentials.bearer)))
    }

    #[test]
    fn headers() {
        let mut headers = HeaderMap::new();
        assert!(is_empty(&from_headers(&headers)));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("bEARER  abc "));
        assert_eq!(exposed(&from_headers(&headers)), (None, Some("abc")));
        headers.insert(API_KEY, HeaderValue::from_static(" key"));
        assert_eq!(exposed(&from_headers(&headers)), (Some("key"), Some("abc")));
        headers.clear();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic abc"));
        assert!(is_empty(&from_headers(&headers)));
    }

    #[test]
    fn payload() {
        let read = |value: Value| from_payload(value.as_object().expect("an object"));
        assert_eq!(
            exposed(&read(json!({"apiKey": "a", "authorization": "Bearer b"}))),
            (Some("a"), Some("b"))
        );
        assert!(is_empty(&read(json!({"apiKey": 1, "authorization": "b"}))));
        assert!(is_empty(&read(json!({"apiKey": ""}))));
    }
}
