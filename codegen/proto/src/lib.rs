//! The contracts between the processes, generated from `codegen/proto/proto/` by `make proto`.
//!
//! `envd.proto` is what a host asks of its guests, `agent.proto` what the control plane asks of a host.
//! Besides the generated code only what both ends of a wire must agree on is here: the names of
//! metadata keys and the limits of the transport.

pub mod content;

pub mod envd {
    #[expect(
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "the generator writes them"
    )]
    pub mod v1 {
        include!("generated/wrenn.envd.v1.rs");
    }
}

pub mod agent {
    #[expect(
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "the generator writes them"
    )]
    pub mod v1 {
        include!("generated/wrenn.agent.v1.rs");
    }
}

/// Metadata key of the request id that goes from the API through the agent into the guest.
pub const REQUEST_ID: &str = "x-request-id";
/// Metadata key of the capsule's token, required by every call into a guest but `Health`.
pub const TOKEN: &str = "x-wrenn-token";
/// Status metadata key that names the input field an error is about, in the schema's spelling.
pub const FIELD: &str = "x-wrenn-field";
/// Status metadata key of the stable code (as in `Cause`) of what made a host end a stream.
pub const CAUSE: &str = "x-wrenn-cause";
/// Metadata key of how long a host waited for guests before its answer ended, in microseconds. Guests that are waited
/// for at once count once. In the trailers, or where there is nothing but headers, in these.
pub const GUEST_WAITED: &str = "x-wrenn-guest-us";
/// The cause of a create that ended because the host has no image of the template. Another host may have one.
pub const IMAGE_MISSING: &str = "IMAGE_MISSING";

/// Port envd listens on inside every capsule.
pub const ENVD_PORT: u16 = 49983;

/// HTTP/2 flow control on every hop, in bytes.
///
/// A reader that stops reading holds at most a stream window per hop; the connection window is out of
/// the way (the protocol's maximum, 2³¹−1) so that one stalled stream never stalls its neighbours.
/// The sum of the stream windows and socket buffers on a path must stay below the 896 KiB of delivered output
/// that envd keeps for each stream of a process, so that what was under way when a hop died can be read again.
pub const STREAM_WINDOW: u32 = 128 * 1024;
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// The stream window of connections to hosts for the content of files, which nobody has to be able to repeat; and of
/// every server, as what flows towards a guest is not repeated either. In bytes.
pub const CONTENT_WINDOW: u32 = 1 << 20;
/// The largest HTTP/2 frame that is taken on any hop, in bytes: each costs a system call or two, which the protocol's
/// 16 KiB make many of. What waits behind one on a shared connection waits for this much.
pub const FRAME: u32 = 64 * 1024;
/// Bytes of a TLS connection that are read before they are decrypted, at either end: TLS alone would ask the kernel for
/// 4 KiB at a time.
pub const READ_AHEAD: usize = 64 * 1024;
/// Bytes of a file in one message to a host.
pub const PIECE: usize = 128 * 1024;

/// Capsules that one call to a host may name: as many as a page of a list has at most.
pub const MOST_CAPSULES: usize = 200;

/// The largest message of a file listing on any hop, in bytes: ten thousand entries with long names and links.
pub const LARGEST_LISTING: usize = 16 << 20;
