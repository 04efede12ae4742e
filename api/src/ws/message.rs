//! The messages of the protocol: pure types, parsed and written.
//!
//! A message that cannot be parsed is a [`Close`], because that is what the protocol makes of it.

use async_graphql::{Request, Response, ServerError};
use axum::extract::ws::Utf8Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Close;

/// Longest operation id that is taken, in bytes. Clients use a UUID or a counter.
const MAX_ID: usize = 256;

/// The extension of a request by which a document that is known already is asked for.
pub(crate) const PERSISTED: &str = "persistedQuery";

/// What a client may say.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ClientMessage {
    ConnectionInit {
        #[serde(default)]
        payload: Option<Map<String, Value>>,
    },
    Ping {
        #[serde(default)]
        payload: Option<Map<String, Value>>,
    },
    Pong {
        #[serde(default, rename = "payload")]
        _payload: Option<Map<String, Value>>,
    },
    Subscribe {
        id: String,
        payload: Box<Request>,
    },
    Complete {
        id: String,
    },
}

impl ClientMessage {
    pub(super) fn parse(text: &str) -> Result<Self, Close> {
        let message: Self = serde_json::from_str(text)
            .map_err(|error| Close::BadRequest(format!("Invalid message: {error}")))?;
        match &message {
            Self::Subscribe { id, .. } | Self::Complete { id } if id.is_empty() || id.len() > MAX_ID => {
                Err(Close::BadRequest(format!("Invalid message: `id` must have 1 to {MAX_ID} bytes")))
            }
            // One that was shown before is asked for by its digest.
            Self::Subscribe { payload, .. }
                if payload.query.is_empty() && !payload.extensions.contains_key(PERSISTED) =>
            {
                Err(Close::BadRequest("Invalid message: `payload.query` is missing".to_owned()))
            }
            _ => Ok(message),
        }
    }
}

/// What the server says, written straight into the text of a frame.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ServerMessage<'a> {
    ConnectionAck,
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<&'a Map<String, Value>>,
    },
    Next {
        id: &'a str,
        payload: &'a Response,
    },
    Error {
        id: &'a str,
        payload: &'a [ServerError],
    },
    Complete {
        id: &'a str,
    },
}

impl ServerMessage<'_> {
    /// `size_hint`: bytes to set aside, best the size of the last event of the same operation.
    pub(super) fn to_text(&self, size_hint: usize) -> Utf8Bytes {
        let mut text = Vec::with_capacity(size_hint);
        serde_json::to_writer(&mut text, self).expect("GraphQL values are JSON, and memory takes all of it");
        // The text moves into the frame; what was just written is checked, not copied.
        String::from_utf8(text).expect("JSON is UTF-8").into()
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::{Name, Value as GraphqlValue, indexmap::IndexMap};

    use super::*;

    fn code(text: &str) -> u16 {
        ClientMessage::parse(text).unwrap_err().code()
    }

    #[test]
    fn garbage_is_a_bad_request() {
        for text in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"type":"start"}"#,
            r#"{"type":"subscribe"}"#,
            r#"{"type":"subscribe","id":1,"payload":{"query":"{a}"}}"#,
            r#"{"type":"subscribe","id":"","payload":{"query":"{a}"}}"#,
            r#"{"type":"subscribe","id":"1"}"#,
            r#"{"type":"subscribe","id":"1","payload":{}}"#,
            r#"{"type":"subscribe","id":"1","payload":{"query":"{a}","variables":[]}}"#,
            r#"{"type":"complete"}"#,
            r#"{"type":"connection_init","payload":"key"}"#,
        ] {
            assert_eq!(code(text), 4400, "{text}");
        }
    }

    #[test]
    fn messages_are_read() {
        assert!(matches!(
            ClientMessage::parse(r#"{"type":"connection_init"}"#),
            Ok(ClientMessage::ConnectionInit { payload: None })
        ));
        assert!(matches!(
            ClientMessage::parse(r#"{"type":"ping","payload":null}"#),
            Ok(ClientMessage::Ping { payload: None })
        ));
        assert!(matches!(ClientMessage::parse(r#"{"type":"pong"}"#), Ok(ClientMessage::Pong { .. })));
        let subscribe = r#"{"id":"a","type":"subscribe","payload":{"query":"query q {a}","operationName":"q","variables":null,"extensions":{}}}"#;
        let Ok(ClientMessage::Subscribe { id, payload }) = ClientMessage::parse(subscribe) else {
            panic!("not a subscribe");
        };
        assert_eq!((id.as_str(), payload.operation_name.as_deref()), ("a", Some("q")));
    }

    #[test]
    fn messages_are_written() {
        let write = |message: ServerMessage<'_>| message.to_text(0).to_string();
        assert_eq!(write(ServerMessage::ConnectionAck), r#"{"type":"connection_ack"}"#);
        assert_eq!(write(ServerMessage::Pong { payload: None }), r#"{"type":"pong"}"#);
        assert_eq!(write(ServerMessage::Complete { id: "\"" }), r#"{"type":"complete","id":"\""}"#);
        let data = IndexMap::from([(Name::new("a"), GraphqlValue::from(1))]);
        let response = Response::new(GraphqlValue::Object(data));
        assert_eq!(
            write(ServerMessage::Next { id: "1", payload: &response }),
            r#"{"type":"next","id":"1","payload":{"data":{"a":1}}}"#
        );
        let errors = [ServerError::new("no", None)];
        assert_eq!(
            write(ServerMessage::Error { id: "1", payload: &errors }),
            r#"{"type":"error","id":"1","payload":[{"message":"no"}]}"#
        );
    }
}
