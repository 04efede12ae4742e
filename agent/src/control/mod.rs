//! The agent's side of the control plane: its credentials, the three GraphQL calls it makes, and the task
//! that keeps both fresh. Nothing here is needed for a capsule to run.

mod client;
mod credentials;
mod link;

pub use client::{ControlClient, ControlError};
pub use credentials::{Credentials, CredentialsError, CredentialsFile, HostKey};
pub use link::{HostLink, LinkError, register};
