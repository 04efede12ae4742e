use std::sync::Arc;

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wrenn_schema::{Services, WrennSchema, jobs::Supervisor};

use super::persisted::Persisted;
use crate::{Config, origin::Origin, ws};

/// What every handler may need.
pub(super) struct App {
    pub(super) schema: WrennSchema,
    pub(super) services: Arc<Services>,
    pub(super) jobs: Arc<Supervisor>,
    pub(super) telemetry: PrometheusHandle,
    /// Nothing where the schema may not be asked for.
    pub(super) sdl: Option<Bytes>,
    pub(super) persisted: Persisted,
    /// Bytes.
    pub(super) max_body: usize,
    pub(super) ws: ws::Limits,
    pub(super) public_url: Origin,
    pub(super) cors_origins: Vec<Origin>,
    pub(super) stop: CancellationToken,
    pub(super) sockets: TaskTracker,
}

impl App {
    pub(super) fn new(
        config: &Config,
        services: &Arc<Services>,
        jobs: &Arc<Supervisor>,
        telemetry: PrometheusHandle,
        stop: &CancellationToken,
        sockets: &TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            schema: wrenn_schema::schema(Arc::clone(services)),
            services: Arc::clone(services),
            jobs: Arc::clone(jobs),
            telemetry,
            sdl: config.introspection.then(|| Bytes::from(wrenn_schema::sdl())),
            persisted: Persisted::default(),
            max_body: config.max_body,
            ws: config.ws.clone(),
            public_url: config.public_url.clone(),
            cors_origins: config.cors_origins.clone(),
            stop: stop.clone(),
            sockets: sockets.clone(),
        })
    }
}
