//! What a request becomes that both sides agreed to go on with in another protocol: bytes, both ways.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, NotedIo, Withdrawal};

/// Bytes for each direction of a tunnel, which has them from its beginning to its end.
const TUNNEL: usize = 64 * 1024;

/// Carries bytes until one side ends, neither says anything for long, the visitor would not be let in any more, or the
/// server stops.
pub(super) async fn tunnel(
    client: OnUpgrade,
    guest: OnUpgrade,
    withdrawn: Withdrawal,
    stop: CancellationToken,
) {
    let upgraded = tokio::select! {
        upgraded = async { tokio::try_join!(client, guest) } => upgraded,
        () = stop.cancelled() => return,
    };
    let (client, guest) = match upgraded {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade was not gone through with"),
    };
    let activity = Activity::new();
    let mut client = NotedIo::new(TokioIo::new(client), activity.clone());
    let mut guest = NotedIo::new(TokioIo::new(guest), activity.clone());
    tokio::select! {
        // Either side may go whenever it likes.
        copied = copy_bidirectional_with_sizes(&mut client, &mut guest, TUNNEL, TUNNEL) => {
            tracing::debug!(?copied, "a tunnel ended");
        }
        why = activity.over(withdrawn) => tracing::debug!(%why, "a tunnel was cut off"),
        () = stop.cancelled() => {}
    }
}
