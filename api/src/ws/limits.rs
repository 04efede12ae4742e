use std::time::Duration;

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
            init_timeout: Duration::from_secs(10),
            ping_every: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(300),
            recheck_every: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
        }
    }
}
