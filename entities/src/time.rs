//! The one clock of the rows.

use chrono::{DateTime, SubsecRound, Utc};

/// The present, cut to microseconds: what both databases can hold, so that a value read equals the one written.
/// Databases make no timestamps of their own, because their text formats compare wrongly with each other.
#[must_use]
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// A moment given in nanoseconds since the Unix epoch, cut to microseconds; `None` for 0, which stands for "never".
#[must_use]
pub fn from_nanos(nanos: i64) -> Option<DateTime<Utc>> {
    (nanos != 0).then(|| DateTime::from_timestamp_nanos(nanos).trunc_subsecs(6))
}
