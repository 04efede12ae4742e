//! The host agent: it is the truth about what runs on its machine.
//!
//! It serves the control plane over mutual TLS ([`grpc`]), owns the capsules ([`capsule`]) and speaks to
//! each one's envd ([`guest`]). It knows no database and no user; how a machine is run is `wrenn-vmm`'s.

pub mod agent;
pub mod capsule;
mod clock;
pub mod config;
pub mod control;
mod dns;
pub mod doctor;
mod files;
pub mod grpc;
pub mod guest;
pub mod host;
pub mod http;
pub mod ids;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod proxy;
mod request_id;
pub mod size;
mod token;
mod upkeep;

pub use agent::{Agent, AgentError};
pub use config::Config;
pub use request_id::RequestId;

/// Of this agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The agent's own subcommand that serves a machine's memory.
pub const PAGE_SERVER: &str = "page-server";

/// An error and its causes on one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A wrapper may repeat what it wraps.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
