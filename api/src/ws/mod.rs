//! A server of the `graphql-transport-ws` protocol.
//!
//! The GraphQL engine only executes; everything between the socket and an operation's stream of
//! responses is here, because on this platform the streams are the point: one hot subscription must
//! not starve its neighbours, a reader that stops must hold back its own operations and nothing else,
//! and keep-alive must go through whatever else is going on.
//!
//! ```text
//!                 ┌───────────────────────── connection task ─────────────────────────┐
//!   socket ──▶ read ──▶ message::ClientMessage ──▶ state::Protocol ──▶ step           │
//!                 │                                   authenticate │ start │ cancel   │
//!                 └────────────────────────────────────────────────┼───────┼──────────┘
//!                                                                  ▼       ▼
//!                                                     operation task per id (operation)
//!                                                                  │ waits for room, then
//!                                                                  │ polls its stream once
//!                                                                  ▼
//!                 control frames ─────────────▶ outbox: one bounded lane per operation
//!                                                                  │ one frame of each in turn
//!   socket ◀── writer task ◀───────────────────────────────────────┘
//! ```
//!
//! Reading never waits for writing: the connection task only ever puts control frames into the outbox,
//! and those are bounded by what they are (one ping, one pong, one last word per operation).
//!
//! The protocol itself: <https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md>.

mod close;
mod connection;
mod gate;
mod limits;
mod liveness;
mod message;
mod operation;
mod outbox;
mod state;
mod writer;

pub use close::Close;
pub use connection::{SUBPROTOCOL, refuse_subprotocol, serve};
pub use gate::{Gate, Refused, Standing};
pub use limits::{Limits, UNDER_WAY};
pub(crate) use message::PERSISTED;
