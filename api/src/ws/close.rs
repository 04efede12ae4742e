use axum::extract::ws::CloseFrame;

/// Longest reason that fits a close frame: a control frame's 125 bytes less the code.
const MAX_REASON: usize = 123;

/// Why the server ends a socket. Codes above 4000 are the protocol's own, the others WebSocket's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    /// The server is shutting down.
    GoingAway,
    /// The WebSocket layer was violated.
    ProtocolError,
    /// A text frame was not UTF-8.
    InvalidText,
    /// A message is over the limit.
    TooBig,
    /// The client makes more noise than it takes answers.
    Policy(&'static str),
    /// Nothing the client did, and nothing that lasts: it may come again.
    TryAgainLater(&'static str),
    /// Not a message of the protocol.
    BadRequest(String),
    /// An operation before the acknowledgement.
    Unauthorized,
    /// The credentials were refused, or no longer stand.
    Forbidden,
    /// The upgrade did not ask for `graphql-transport-ws`.
    SubprotocolNotAcceptable,
    /// No acknowledged `connection_init` in time.
    InitTimeout,
    /// The id is in use.
    SubscriberExists(String),
    /// A second `connection_init`.
    TooManyInits,
}

impl Close {
    /// The code on the wire.
    pub fn code(&self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::ProtocolError => 1002,
            Self::InvalidText => 1007,
            Self::Policy(_) => 1008,
            Self::TooBig => 1009,
            Self::TryAgainLater(_) => 1013,
            Self::BadRequest(_) => 4400,
            Self::Unauthorized => 4401,
            Self::Forbidden => 4403,
            Self::SubprotocolNotAcceptable => 4406,
            Self::InitTimeout => 4408,
            Self::SubscriberExists(_) => 4409,
            Self::TooManyInits => 4429,
        }
    }

    /// The reason on the wire, cut to what a close frame can carry.
    pub fn reason(&self) -> String {
        let reason = match self {
            Self::GoingAway => "Going away".to_owned(),
            Self::ProtocolError => "WebSocket protocol error".to_owned(),
            Self::InvalidText => "Text is not UTF-8".to_owned(),
            Self::TooBig => "Message too big".to_owned(),
            Self::Policy(reason) | Self::TryAgainLater(reason) => (*reason).to_owned(),
            Self::BadRequest(reason) => reason.clone(),
            Self::Unauthorized => "Unauthorized".to_owned(),
            Self::Forbidden => "Forbidden".to_owned(),
            Self::SubprotocolNotAcceptable => "Subprotocol not acceptable".to_owned(),
            Self::InitTimeout => "Connection initialisation timeout".to_owned(),
            Self::SubscriberExists(id) => format!("Subscriber for {id} already exists"),
            Self::TooManyInits => "Too many initialisation requests".to_owned(),
        };
        let end = reason.floor_char_boundary(MAX_REASON);
        reason[..end].to_owned()
    }
}

impl From<&Close> for CloseFrame {
    fn from(close: &Close) -> Self {
        Self { code: close.code(), reason: close.reason().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let close = Close::SubscriberExists("ä".repeat(100));
        let reason = close.reason();
        assert!(reason.len() <= MAX_REASON && reason.len() > MAX_REASON - 2);
        assert!(reason.starts_with("Subscriber for ää"));
    }
}
