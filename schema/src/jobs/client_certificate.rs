//! Exchanges the client certificate long before it runs out.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Job;
use crate::{Error, Services};

/// Half of what a certificate lives.
const PERIOD: Duration = Duration::from_secs(12 * 60 * 60);

pub(super) struct ClientCertificate {
    services: Arc<Services>,
}

impl ClientCertificate {
    pub(super) fn new(services: Arc<Services>) -> Self {
        Self { services }
    }
}

#[async_trait::async_trait]
impl Job for ClientCertificate {
    fn name(&self) -> &'static str {
        "client-certificate"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, _: &CancellationToken) -> Result<(), Error> {
        Ok(self.services.authority.renew_client()?)
    }
}
