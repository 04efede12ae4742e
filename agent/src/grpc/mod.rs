//! The gRPC service `wrenn.agent.v1.Agent`: what the control plane asks of this host, over mutual TLS.
//!
//! This room translates; every rule about capsules is in [`crate::capsule`].

mod each;
mod files;
mod metrics;
mod passage;
mod ports;
mod processes;
mod relay;
mod request;
mod service;
mod status;
mod templates;
mod tls;
mod waited;
mod watch;

pub use service::AgentService;
pub use tls::{Accepted, CONTROL_PLANE_NAME, ServerTls, TlsConnection, TlsError, accept};
pub use waited::Timed;
