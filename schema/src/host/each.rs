//! The same question about many capsules, asked of their hosts together.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};
use wrenn_entities::{CapsuleId, HostId};

use crate::Error;

/// Hosts answer for one capsule a call; so many calls are under way at a time.
const AT_ONCE: usize = 16;

/// Where a capsule is, and which it is.
pub(crate) type Placed = (HostId, CapsuleId);

/// What was answered for each. That one host is away is not the failure of another.
pub(crate) async fn each<T, F>(
    capsules: Vec<Placed>,
    ask: impl Fn(HostId, CapsuleId) -> F,
) -> HashMap<Placed, Result<T, Error>>
where
    F: Future<Output = Result<T, Error>>,
{
    stream::iter(capsules)
        .map(|(host, id)| {
            let asked = ask(host, id);
            async move { ((host, id), asked.await) }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}
