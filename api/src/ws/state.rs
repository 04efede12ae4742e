//! The protocol's state, without sockets and without time.
//!
//! ```text
//!                    connection_init            admitted
//!   AwaitingInit ─────────────────────▶ Admitting ──────▶ Acknowledged ⟲ subscribe, complete, ping
//!        │                                  │                  │
//!        │ subscribe → 4401                 │ subscribe → 4401 │ id in use → 4409
//!        │ timeout   → 4408                 │ timeout   → 4408 │ revoked   → 4403
//!        │                                  │ refused   → 4403 │
//!        │                                  │ second init → 4429 (in both)
//!        └──────────────┬───────────────────┴──────────────────┘
//!                       ▼          not a message of the protocol → 4400 (in all)
//!                     closed
//! ```
//!
//! - *AwaitingInit → Admitting*: the first `connection_init`; its payload goes to the gate.
//! - *Admitting → Acknowledged*: the gate let it in; `connection_ack` is sent.
//! - Within *Acknowledged*, an id is in use from its `subscribe` until the client completes it or its last
//!   frame was handed to the writer.
//! - Pings are answered in every state.

use std::collections::HashMap;

use async_graphql::Request;
use serde_json::{Map, Value};

use super::{Close, message::ClientMessage};

/// One run of an operation: ids are the client's and come again, keys never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OperationKey(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitingInit,
    Admitting,
    Acknowledged,
}

/// What the connection has to do about a message.
#[derive(Debug)]
pub(super) enum Step {
    Nothing,
    Admit(Option<Map<String, Value>>),
    Pong(Option<Map<String, Value>>),
    Start {
        key: OperationKey,
        id: String,
        request: Box<Request>,
    },
    /// One operation too many: it gets an error, the socket lives on.
    TooMany {
        id: String,
    },
    Cancel(OperationKey),
}

#[derive(Debug)]
pub(super) struct Protocol {
    phase: Phase,
    max_operations: usize,
    next_key: u64,
    operations: HashMap<String, OperationKey>,
}

impl Protocol {
    pub(super) fn new(max_operations: usize) -> Self {
        Self { phase: Phase::AwaitingInit, max_operations, next_key: 0, operations: HashMap::new() }
    }

    pub(super) fn receive(&mut self, message: ClientMessage) -> Result<Step, Close> {
        match (message, self.phase) {
            (ClientMessage::ConnectionInit { payload }, Phase::AwaitingInit) => {
                self.phase = Phase::Admitting;
                Ok(Step::Admit(payload))
            }
            (ClientMessage::ConnectionInit { .. }, _) => Err(Close::TooManyInits),
            (ClientMessage::Ping { payload }, _) => Ok(Step::Pong(payload)),
            (ClientMessage::Pong { .. }, _) => Ok(Step::Nothing),
            (ClientMessage::Subscribe { id, payload }, Phase::Acknowledged) => self.subscribe(id, payload),
            (ClientMessage::Subscribe { .. }, _) => Err(Close::Unauthorized),
            (ClientMessage::Complete { id }, _) => {
                Ok(self.operations.remove(&id).map_or(Step::Nothing, Step::Cancel))
            }
        }
    }

    fn subscribe(&mut self, id: String, request: Box<Request>) -> Result<Step, Close> {
        if self.operations.contains_key(&id) {
            return Err(Close::SubscriberExists(id));
        }
        if self.operations.len() >= self.max_operations {
            return Ok(Step::TooMany { id });
        }
        let key = OperationKey(self.next_key);
        self.next_key += 1;
        self.operations.insert(id.clone(), key);
        Ok(Step::Start { key, id, request })
    }

    /// The gate let the client in.
    pub(super) fn acknowledge(&mut self) {
        self.phase = Phase::Acknowledged;
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        self.phase == Phase::Acknowledged
    }

    /// The operation said its last word; its id is free again.
    pub(super) fn finished(&mut self, key: OperationKey) {
        self.operations.retain(|_, running| *running != key);
    }
}

#[cfg(test)]
impl From<u64> for OperationKey {
    fn from(key: u64) -> Self {
        Self(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init() -> ClientMessage {
        ClientMessage::ConnectionInit { payload: None }
    }

    fn subscribe(id: &str) -> ClientMessage {
        ClientMessage::Subscribe { id: id.to_owned(), payload: Box::new(Request::new("{ a }")) }
    }

    fn complete(id: &str) -> ClientMessage {
        ClientMessage::Complete { id: id.to_owned() }
    }

    fn acknowledged(max_operations: usize) -> Protocol {
        let mut protocol = Protocol::new(max_operations);
        assert!(matches!(protocol.receive(init()), Ok(Step::Admit(None))));
        protocol.acknowledge();
        protocol
    }

    #[test]
    fn nothing_runs_before_the_acknowledgement() {
        let mut protocol = Protocol::new(1);
        assert_eq!(protocol.receive(subscribe("1")).unwrap_err(), Close::Unauthorized);
        assert!(matches!(protocol.receive(init()), Ok(Step::Admit(_))));
        assert_eq!(protocol.receive(subscribe("1")).unwrap_err(), Close::Unauthorized);
    }

    #[test]
    fn a_second_init_is_one_too_many_in_every_phase() {
        let mut protocol = Protocol::new(1);
        assert!(matches!(protocol.receive(init()), Ok(Step::Admit(_))));
        assert_eq!(protocol.receive(init()).unwrap_err(), Close::TooManyInits);
        protocol.acknowledge();
        assert_eq!(protocol.receive(init()).unwrap_err(), Close::TooManyInits);
    }

    #[test]
    fn pings_are_answered_in_every_phase() {
        let mut protocol = Protocol::new(1);
        let ping = || ClientMessage::Ping { payload: None };
        assert!(matches!(protocol.receive(ping()), Ok(Step::Pong(None))));
        assert!(matches!(protocol.receive(init()), Ok(Step::Admit(_))));
        assert!(matches!(protocol.receive(ping()), Ok(Step::Pong(None))));
    }

    #[test]
    fn an_id_is_in_use_until_it_ends_on_either_side() {
        let mut protocol = acknowledged(2);
        let Ok(Step::Start { key: first, .. }) = protocol.receive(subscribe("1")) else { panic!() };
        assert_eq!(protocol.receive(subscribe("1")).unwrap_err(), Close::SubscriberExists("1".to_owned()));
        protocol.finished(first);
        let Ok(Step::Start { key: second, .. }) = protocol.receive(subscribe("1")) else { panic!() };
        assert_ne!(first, second);
        protocol.finished(first);
        assert!(matches!(protocol.receive(complete("1")), Ok(Step::Cancel(key)) if key == second));
        assert!(matches!(protocol.receive(complete("1")), Ok(Step::Nothing)));
        assert!(matches!(protocol.receive(subscribe("1")), Ok(Step::Start { .. })));
    }

    #[test]
    fn one_operation_too_many_is_refused_alone() {
        let mut protocol = acknowledged(1);
        assert!(matches!(protocol.receive(subscribe("1")), Ok(Step::Start { .. })));
        assert!(matches!(protocol.receive(subscribe("2")), Ok(Step::TooMany { id }) if id == "2"));
        assert!(matches!(protocol.receive(complete("1")), Ok(Step::Cancel(_))));
        assert!(matches!(protocol.receive(subscribe("2")), Ok(Step::Start { .. })));
    }
}
