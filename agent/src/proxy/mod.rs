//! The way from the control plane to what listens on a port of a capsule: HTTP/1.1 and WebSocket, beside gRPC on
//! the same listener, told apart by what the TLS handshake agreed on.
//!
//! A request names its capsule and port in the headers [`CAPSULE`] and [`PORT`], which the guest does not see; path,
//! query, method and body are passed on as they are, streamed both ways, only as fast as they are read. What cannot be
//! passed on is answered here, with a stable code in the header [`ERROR`]; an answer without it is the guest's own.
//!
//! - A request is activity from its first byte to the last of its answer, and so is a tunnel that it became.
//! - A pause lets no new ones in and waits up to two seconds for those in flight. Tunnels, which would not end by
//!   themselves, are not waited for.
//! - A service that is just starting is dialled three times. A request of which a byte may have reached the guest is
//!   never sent again.
//! - Connections are kept for the next request to the same port, within one life of the capsule; they all end with it.
//! - Envd's own port is refused whatever the control plane asks for.
//!
//! The pool, the framing and the upgrade are hyper's. The ready-made reverse proxies on top of it bring their own idea of
//! where a target is and how long a connection lives; tying both to a capsule's life is most of what is here.

mod exchange;
mod head;
mod refusal;
mod serve;
mod upstream;

pub use serve::serve;
pub use upstream::Upstream;

/// Header of a request: the capsule's id, `cl-…`.
pub const CAPSULE: &str = "x-wrenn-capsule";
/// Header of a request: the port in the guest, 1…65535.
pub const PORT: &str = "x-wrenn-port";
/// Header of an answer that is this host's and not the guest's: why, as a stable code.
pub const ERROR: &str = "x-wrenn-error";
