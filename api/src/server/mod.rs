//! The running process: what is started, in which order, and how it ends.

mod app;
mod capacity;
mod divert;
mod envelope;
mod files;
mod gate;
mod graphiql;
mod graphql;
mod listener;
mod pages;
mod patience;
mod persisted;
mod range;
mod refusal;
mod telemetry;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{Method, header},
    routing,
};
use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::cors::{AllowOrigin, CorsLayer};
use wrenn_schema::{SchemaConfig, Services, jobs::Supervisor};

use crate::{
    Config, database,
    extension::{Extension, ExtensionError, Worker},
    proxy::Proxy,
};
use app::App;
use capacity::Capacity;
pub(crate) use envelope::X_REQUEST_ID;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot set up the database")]
    Database(#[source] DbErr),
    #[error("cannot start the services")]
    Services(#[source] wrenn_schema::StartError),
    #[error("cannot set up the metrics")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
    #[error("cannot prepare the extension {name}")]
    Extension {
        name: &'static str,
        #[source]
        source: ExtensionError,
    },
    #[error("WRENN_API_LISTEN: cannot listen on {listen}")]
    Listen {
        listen: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Puts a server together.
#[derive(Default)]
pub struct ServerBuilder {
    extensions: Vec<Box<dyn Extension>>,
}

impl ServerBuilder {
    /// Adds another crate's routes and workers.
    #[must_use]
    pub fn extension(mut self, extension: impl Extension) -> Self {
        self.extensions.push(Box::new(extension));
        self
    }

    /// Migrates the database, starts services, jobs and workers, and listens.
    ///
    /// # Errors
    /// The first step that fails; nothing goes on running then.
    // Boxed: its code is then made with this crate, once, and not with each program that calls it.
    pub fn start(self, config: Config) -> BoxFuture<'static, Result<Server, StartError>> {
        Box::pin(self.begin(config))
    }

    async fn begin(self, config: Config) -> Result<Server, StartError> {
        let telemetry = telemetry::start().map_err(StartError::Metrics)?;
        let listener = listener::bind(config.listen, config.send_buffer)
            .map_err(|source| StartError::Listen { listen: config.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { listen: config.listen, source })?;

        let db = database::open(config.database_url.expose_secret()).await.map_err(StartError::Database)?;
        for extension in &self.extensions {
            let prepared = extension.prepare(&db).await;
            prepared.map_err(|source| StartError::Extension { name: extension.name(), source })?;
        }
        let services = Services::start(schema_config(&config), db).await.map_err(StartError::Services)?;
        let jobs = Arc::new(Supervisor::start(&services));

        let stop_serving = CancellationToken::new();
        tokio::spawn(telemetry::keep(telemetry.clone(), stop_serving.clone()));
        let sockets = TaskTracker::new();
        let app = App::new(&config, &services, &jobs, telemetry, &stop_serving, &sockets);
        let mut routes = routes(app);
        let mut workers = Vec::new();
        for extension in &self.extensions {
            tracing::info!(name = extension.name(), "extension");
            routes = routes.merge(extension.routes(&services));
            workers.extend(extension.workers(&services));
        }
        let proxy = Arc::new(Proxy::new(
            &services,
            config.proxy_domain.clone(),
            config.proxy_paths,
            config.public_url.clone(),
            stop_serving.clone(),
            sockets.clone(),
        ));
        let router =
            layered(routes, &config).layer(axum::middleware::from_fn_with_state(proxy, divert::divert));
        let most = listener::most_connections(config.max_connections);
        let serving = tokio::spawn(listener::serve(
            listener,
            router,
            Capacity::new(most, config.max_connections_per_peer),
            stop_serving.clone(),
            Duration::from_secs(config.shutdown_timeout),
        ));
        tracing::info!(%address, public_url = %config.public_url, "listening");
        let (stop_workers, workers) = start_workers(workers);
        Ok(Server {
            address,
            services,
            jobs,
            stop_serving,
            serving,
            sockets,
            stop_workers,
            workers,
            shutdown_timeout: Duration::from_secs(config.shutdown_timeout),
        })
    }
}

/// A server that is running. It goes on until [`Server::stop`].
pub struct Server {
    address: SocketAddr,
    services: Arc<Services>,
    jobs: Arc<Supervisor>,
    stop_serving: CancellationToken,
    serving: JoinHandle<()>,
    sockets: TaskTracker,
    stop_workers: CancellationToken,
    workers: TaskTracker,
    shutdown_timeout: Duration,
}

impl Server {
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Where it listens; the port is the real one if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// Ends in order: no new connections; sockets are closed (1001) and requests under way finish; workers,
    /// then jobs; last the services, which wait for what was begun on behalf of clients.
    pub async fn stop(self) {
        tracing::info!("stopping");
        self.stop_serving.cancel();
        self.sockets.close();
        let served = async {
            let _ = self.serving.await;
            self.sockets.wait().await;
        };
        // A little more than requests are given, for the farewells.
        bounded("connections", self.shutdown_timeout + Duration::from_secs(1), served).await;
        self.stop_workers.cancel();
        bounded("workers", self.shutdown_timeout, self.workers.wait()).await;
        bounded("jobs", self.shutdown_timeout, self.jobs.stop()).await;
        self.services.shutdown().await;
        tracing::info!("stopped");
    }
}

async fn bounded(what: &'static str, limit: Duration, ending: impl Future<Output = ()>) {
    if tokio::time::timeout(limit, ending).await.is_err() {
        tracing::warn!(what, ?limit, "did not end in time");
    }
}

fn start_workers(workers: Vec<Worker>) -> (CancellationToken, TaskTracker) {
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    for worker in workers {
        tracker.spawn(worker.run(stop.clone()));
    }
    tracker.close();
    (stop, tracker)
}

fn schema_config(config: &Config) -> SchemaConfig {
    let mut schema = SchemaConfig::new(&config.dir);
    schema.redis_url = config.redis_url.clone();
    schema.public_url = config.public_url.to_string();
    schema.proxy_domain = config.proxy_domain.as_ref().map(ToString::to_string);
    schema.introspection = config.introspection;
    schema.depth_limit = config.depth_limit;
    schema.complexity_limit = config.complexity_limit;
    schema.cpu_overcommit = config.cpu_overcommit;
    schema.memory_overcommit = config.memory_overcommit;
    schema.disk_overcommit = config.disk_overcommit;
    schema
}

fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/graphql", routing::post(graphql::execute).get(graphql::upgrade))
        .route("/files/{capsule}", routing::get(files::download).put(files::upload))
        .route("/graphiql", routing::get(graphiql::page))
        .route("/graphiql/{asset}", routing::get(graphiql::asset))
        .route("/schema.graphql", routing::get(pages::sdl))
        .route("/health", routing::get(pages::health))
        .route("/health/jobs", routing::get(pages::jobs))
        .route("/metrics", routing::get(pages::metrics))
        .with_state(app)
}

fn layered(routes: Router, config: &Config) -> Router {
    let headers = Arc::new(envelope::SecurityHeaders::new(config.public_url.is_https()));
    routes
        .fallback(refusal::not_found)
        .method_not_allowed_fallback(refusal::method_not_allowed)
        .layer(cors(config))
        .layer(axum::middleware::from_fn_with_state(headers, envelope::wrap))
}

fn cors(config: &Config) -> CorsLayer {
    let origins = config.cors_origins.iter().filter_map(|origin| origin.as_str().parse().ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT])
        .allow_headers([
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            header::RANGE,
            axum::http::HeaderName::from_static("x-api-key"),
            envelope::X_REQUEST_ID,
            graphql::X_WRENN_TIMING,
        ])
        .expose_headers([
            envelope::X_REQUEST_ID,
            files::X_WRENN_PATH,
            header::ACCEPT_RANGES,
            header::CONTENT_RANGE,
            header::CONTENT_DISPOSITION,
        ])
        .max_age(Duration::from_secs(600))
}
