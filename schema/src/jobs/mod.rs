//! What runs in the background. A job is a small type with a name, a period and one `activate`, which reads what
//! should be and what is and narrows the difference; it takes no input. One supervisor runs them all.

mod client_certificate;
mod host_monitor;
mod host_watch;
mod reconciler;
mod supervisor;
mod template_files;

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

pub use self::supervisor::{JobStatus, Supervisor};
use crate::{Error, Services};

/// Something that is done again and again.
#[async_trait::async_trait]
pub(crate) trait Job: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// From the end of one activation to the beginning of the next.
    fn period(&self) -> Duration;

    /// Done at once when this ends, without waiting for the period.
    async fn woken(&self) {
        std::future::pending::<()>().await;
    }

    /// One round. Is to return soon once `stop` is cancelled.
    async fn activate(&self, stop: &CancellationToken) -> Result<(), Error>;

    /// Ends what the activations have left running.
    async fn finish(&self) {}
}

/// All jobs, in the order in which they are started; they are stopped in the opposite order.
fn all(services: &Arc<Services>) -> Vec<Arc<dyn Job>> {
    vec![
        Arc::new(client_certificate::ClientCertificate::new(services.clone())),
        Arc::new(host_monitor::HostMonitor::new(services.clone())),
        Arc::new(host_watch::HostWatch::new(services.clone())),
        Arc::new(reconciler::Reconciler::new(services.clone())),
        Arc::new(template_files::TemplateFiles::new(services.clone())),
    ]
}
