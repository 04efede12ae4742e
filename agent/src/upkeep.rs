//! What a host needs now and then.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wrenn_vmm::disk;
use wrenn_vmm::paths::HostPaths;

/// Between two times that what was freed is given back to the host's disk.
const TRIM_PERIOD: Duration = Duration::from_secs(3600);

/// Gives back what the disk store has freed, every hour until `stop`. One that is under way then is waited for as
/// long as the servers are; what is left of it holds up the unmounting of the store.
pub async fn trim(paths: HostPaths, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(TRIM_PERIOD)).await.is_some() {
        match disk::trim(&paths).await {
            Ok(bytes) => tracing::info!(mib = bytes >> 20, "gave freed disk space back"),
            Err(error) => {
                tracing::warn!(error = %crate::report(&error), "freed disk space was not given back");
            }
        }
    }
}
