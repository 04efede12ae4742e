use std::time::Duration;

/// The most that [`Limits::window`] and [`Limits::queue_bytes`] may be together, so that a client that was killed finds
/// all that it lost: of the 896 KiB that envd keeps, the two hops to it may hold 384 KiB, and there are three events of
/// 64 KiB here that are counted too late or not at all. What is left is 320 KiB, of which base64 makes 426 KiB.
pub const UNDER_WAY: usize = 416 * 1024;

/// What one socket may cost, and how long it may keep the server waiting.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest incoming message, in bytes.
    pub max_message: usize,
    /// Operations under way at once, counting those whose last frame is not yet written.
    pub max_operations: usize,
    /// An operation's stream is not polled while this many bytes of its frames wait to be written.
    /// What waits can exceed it by one event.
    pub queue_bytes: usize,
    /// The same in frames.
    pub queue_frames: usize,
    /// Bytes of events that may be on their way to a peer without it having confirmed, by answering a ping, that it has
    /// read them. Bounds what a keystroke's echo waits behind, and what a client that is killed has to ask for again:
    /// with what waits before it (in `api`, `agent` and the transports between) less than envd's `HISTORY`; see
    /// [`UNDER_WAY`].
    pub window: usize,
    /// From the upgrade to the acknowledgement.
    pub init_timeout: Duration,
    /// Between two pings.
    pub ping_every: Duration,
    /// A peer that has frames waiting for it and takes none is dropped after this long.
    pub stall_timeout: Duration,
    /// Between two looks at whether the credentials still stand.
    pub recheck_every: Duration,
    /// How long a closing socket may take over its farewell.
    pub close_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: 2 * 1024 * 1024,
            max_operations: 100,
            queue_bytes: 64 * 1024,
            queue_frames: 256,
            window: 256 * 1024,
            init_timeout: Duration::from_secs(10),
            ping_every: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(300),
            recheck_every: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
        }
    }
}
