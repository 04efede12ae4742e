//! What the schema drives, in one place, shared by every request.

use std::{sync::Arc, time::Duration};

use sea_orm::{DatabaseConnection, DbErr};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error, SchemaConfig,
    access::{KeyCache, Standings},
    bus::{Bus, BusError, LocalBus, RedisBus, Topic},
    capsule::port_watch::PortWatches,
    host::{Authority, AuthorityError, HostClients},
    port::{Routes, Wakings},
    process::HeldOutputs,
    signing::{UrlKey, UrlKeyError},
    spent,
};

/// How long a shutdown waits for operations that are under way. What is not done by then is settled by the
/// reconciler of the next start.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// Why the services could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the certificate authority is not usable")]
    Authority(#[from] AuthorityError),
    #[error("the key that URLs are signed with is not usable")]
    UrlKey(#[from] UrlKeyError),
    #[error("the database is not usable")]
    Database(#[from] DbErr),
    #[error("WRENN_REDIS_URL cannot be used")]
    Bus(#[from] BusError),
}

/// Everything behind the fields.
pub struct Services {
    pub(crate) config: SchemaConfig,
    pub(crate) db: DatabaseConnection,
    pub(crate) bus: Box<dyn Bus>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) hosts: HostClients,
    pub(crate) keys: KeyCache,
    pub(crate) port_watches: PortWatches,
    pub(crate) standings: Standings,
    /// The keys behind signatures, by the digests of those: apart from the others, for a signature is no key.
    pub(crate) signers: KeyCache,
    pub(crate) url_key: UrlKey,
    /// Where the ports of capsules are, as far as somebody asked lately.
    pub(crate) routes: Arc<Routes>,
    /// Capsules that somebody wants something of and that do not run yet.
    pub(crate) wakings: Wakings,
    pub(crate) held_output: Arc<HeldOutputs>,
    /// Woken when a host came or changed, so that it is watched at once.
    pub(crate) hosts_changed: Notify,
    /// Woken when a template went, so that its files go at once.
    pub(crate) templates_changed: Notify,
    /// Operations that go on whatever happens to the request that started them.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the process is about to end.
    pub(crate) stopping: CancellationToken,
}

impl Services {
    /// Starts on a database on which all migrations have run. Makes the certificate authority if there is none.
    pub async fn start(config: SchemaConfig, db: DatabaseConnection) -> Result<Arc<Self>, StartError> {
        db.ping().await?;
        let authority = Arc::new(Authority::open(&config.dir.join("ca")).await?);
        let url_key = UrlKey::open(&config.dir.join("signing")).await?;
        let hosts = HostClients::new(db.clone(), &authority)?;
        let bus: Box<dyn Bus> = match &config.redis_url {
            // Replicas of one installation have one authority, or the agents would not know them.
            Some(url) => Box::new(RedisBus::start(url, &authority.fingerprint())?),
            None => Box::<LocalBus>::default(),
        };
        let routes = Arc::<Routes>::default();
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(routes.clone().follow(bus.subscribe(Topic::Capsules), stopping.clone()));
        let held_output = Arc::new(HeldOutputs::new(config.held_output));
        Ok(Arc::new(Self {
            config,
            db,
            bus,
            authority,
            hosts,
            keys: KeyCache::default(),
            port_watches: PortWatches::default(),
            standings: Standings::default(),
            signers: KeyCache::default(),
            url_key,
            routes,
            wakings: Wakings::default(),
            held_output,
            hosts_changed: Notify::new(),
            templates_changed: Notify::new(),
            tasks,
            stopping,
        }))
    }

    /// Takes no more operations, ends subscriptions, and waits for what is under way.
    pub async fn shutdown(&self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                left = self.tasks.len(),
                "operations are left to the reconciler of the next start"
            );
        }
        self.bus.close().await;
    }

    #[must_use]
    pub fn db(&self) -> &DatabaseConnection {
        &self.db
    }

    /// Whether the database answers.
    pub async fn ready(&self) -> Result<(), Error> {
        Ok(self.db.ping().await?)
    }

    /// Runs `operation` to its end, also when the caller stops waiting for it.
    pub(crate) async fn run_tracked<T, F>(&self, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        if self.stopping.is_cancelled() {
            return Err(Error::unavailable("the server is shutting down"));
        }
        self.tasks.spawn(spent::carried(operation)).await.map_err(|error| Error::Task(error.to_string()))?
    }
}
