//! The tables of the control plane and the ids of what is in them.
//!
//! No logic lives here: what may be written when is decided in `wrenn-schema`.

pub mod api_key;
pub mod capsule;
pub mod host;
pub mod host_credential;
pub mod id;
pub mod idempotency_key;
pub mod json;
pub mod membership;
pub mod public_port;
pub mod team;
pub mod template;
pub mod time;
pub mod user;

pub use id::{ApiKeyId, BuildId, CapsuleId, HostId, IdError, TeamId, TemplateId, TypedId, UserId};
