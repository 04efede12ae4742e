//! Configuration: a TOML file and the environment, under the same names. The environment wins.

mod parse;
mod settings;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use secrecy::SecretString;

pub use parse::ConfigError;
pub use settings::table;

use crate::{origin::Origin, proxy::Domain, ws};
use parse::{Source, at_least, between, log_filter};

/// Everything the process can be told. See [`table`] for what each means.
#[derive(Clone, Debug)]
pub struct Config {
    pub dir: PathBuf,
    pub listen: SocketAddr,
    pub database_url: SecretString,
    /// Where replicas hear of each other's changes; nothing: there is but one.
    pub redis_url: Option<SecretString>,
    /// Where clients reach this server.
    pub public_url: Origin,
    /// The domain below which capsules have their names; without one they are reached by path.
    pub proxy_domain: Option<Domain>,
    /// Whether they are reached by path, too, under this server's own origin.
    pub proxy_paths: bool,
    /// Other origins whose pages may call it.
    pub cors_origins: Vec<Origin>,
    pub introspection: bool,
    pub depth_limit: usize,
    pub complexity_limit: usize,
    pub cpu_overcommit: f64,
    pub memory_overcommit: f64,
    pub disk_overcommit: f64,
    /// Bytes.
    pub max_body: usize,
    pub ws: ws::Limits,
    /// Of all peers together, where the limit of open files allows as many.
    pub max_connections: usize,
    /// 0: as many as there may be of all.
    pub max_connections_per_peer: usize,
    /// Bytes the kernel may hold per connection for a peer that does not take them.
    pub send_buffer: u32,
    /// Seconds.
    pub shutdown_timeout: u64,
    /// A filter in the syntax of `tracing-subscriber`.
    pub log: String,
}

impl Config {
    /// Reads the file named by `WRENN_CONFIG`, if any, and the environment.
    ///
    /// # Errors
    /// The first wrong value, with its name and what is wrong with it.
    pub fn load() -> Result<Self, ConfigError> {
        let environment = Env::raw().filter(|name| name.starts_with("WRENN_")).lowercase(false);
        let mut figment = Figment::new();
        if let Some(path) = std::env::var_os("WRENN_CONFIG").filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            if !path.is_file() {
                return Err(ConfigError::new("WRENN_CONFIG", format!("{} is not a file", path.display())));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        Self::read(figment.merge(environment))
    }

    /// Reads given TOML alone, as [`Self::load`] does with the file's.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_toml(toml: &str) -> Result<Self, ConfigError> {
        Self::read(Figment::from(Toml::string(toml)))
    }

    fn read(figment: Figment) -> Result<Self, ConfigError> {
        let source = Source::new(figment)?;
        let dir = absolute("WRENN_DIR", &source.get::<PathBuf>("WRENN_DIR")?)?;
        let listen = source.get::<SocketAddr>("WRENN_API_LISTEN")?;
        let public_url = match source.given("WRENN_PUBLIC_URL") {
            Some(_) => source.get("WRENN_PUBLIC_URL")?,
            None => Origin::of_listener(listen),
        };
        let log = source.get::<String>("WRENN_LOG")?;
        log_filter(&log).map_err(|reason| ConfigError::new("WRENN_LOG", reason))?;
        Ok(Self {
            database_url: database_url(&source, &dir)?,
            redis_url: redis_url(&source)?,
            dir,
            listen,
            proxy_domain: proxy_domain(&source, &public_url)?,
            proxy_paths: source.get("WRENN_PROXY_PATHS")?,
            public_url,
            cors_origins: source.list("WRENN_CORS_ORIGINS")?,
            introspection: source.get("WRENN_INTROSPECTION")?,
            depth_limit: source.checked("WRENN_DEPTH_LIMIT", at_least(1))?,
            complexity_limit: source.checked("WRENN_COMPLEXITY_LIMIT", at_least(1))?,
            cpu_overcommit: source.checked("WRENN_CPU_OVERCOMMIT", at_least(0.1))?,
            memory_overcommit: source.checked("WRENN_MEMORY_OVERCOMMIT", at_least(0.1))?,
            disk_overcommit: source.checked("WRENN_DISK_OVERCOMMIT", at_least(0.1))?,
            max_body: source.checked("WRENN_MAX_BODY", at_least(1024))?,
            ws: ws_limits(&source)?,
            max_connections: source.checked("WRENN_MAX_CONNECTIONS", at_least(1))?,
            max_connections_per_peer: source.get("WRENN_MAX_CONNECTIONS_PER_PEER")?,
            send_buffer: source.checked("WRENN_SEND_BUFFER", between(16 * 1024, 16 * 1024 * 1024))?,
            shutdown_timeout: source.checked("WRENN_SHUTDOWN_SEC", between(1, 3600))?,
            log,
        })
    }
}

fn ws_limits(source: &Source) -> Result<ws::Limits, ConfigError> {
    const WINDOW: &str = "WRENN_WS_WINDOW";
    let queue_bytes: usize = source.checked("WRENN_WS_QUEUE_BYTES", at_least(1024))?;
    let window: usize = source.checked(WINDOW, at_least(16 * 1024))?;
    if window.saturating_add(queue_bytes) > ws::UNDER_WAY {
        let reason = format!(
            "`{window}`: with WRENN_WS_QUEUE_BYTES ({queue_bytes}) at most {}, as capsules keep no more output for a \
             client that comes back",
            ws::UNDER_WAY
        );
        return Err(ConfigError::new(WINDOW, reason));
    }
    Ok(ws::Limits {
        max_message: source.checked("WRENN_WS_MAX_MESSAGE", at_least(1024))?,
        max_operations: source.checked("WRENN_WS_MAX_OPERATIONS", at_least(1))?,
        queue_bytes,
        queue_frames: source.checked("WRENN_WS_QUEUE_FRAMES", at_least(1))?,
        window,
        init_timeout: source.seconds("WRENN_WS_INIT_SEC", 1, 300)?,
        ping_every: source.seconds("WRENN_WS_PING_SEC", 1, 300)?,
        stall_timeout: source.seconds("WRENN_WS_STALL_SEC", 1, 86_400)?,
        recheck_every: source.seconds("WRENN_WS_RECHECK_SEC", 1, 10)?,
        ..ws::Limits::default()
    })
}

fn absolute(name: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|error| ConfigError::new(name, error.to_string()))
}

/// Whatever is below the domain is a capsule's, so this server cannot be there.
fn proxy_domain(source: &Source, public_url: &Origin) -> Result<Option<Domain>, ConfigError> {
    const NAME: &str = "WRENN_PROXY_DOMAIN";
    if source.given(NAME).is_none() {
        return Ok(None);
    }
    let domain: Domain = source.get(NAME)?;
    if domain.label(public_url.host()).is_some() {
        let reason = format!("`{domain}`: {public_url} is below it, where only capsules are");
        return Err(ConfigError::new(NAME, reason));
    }
    Ok(Some(domain))
}

/// The value is never part of the message: it may hold a password.
fn database_url(source: &Source, dir: &Path) -> Result<SecretString, ConfigError> {
    const NAME: &str = "WRENN_DATABASE_URL";
    let Some(url) = source.given(NAME) else {
        return Ok(format!("sqlite://{}/wrenn.db", dir.display()).into());
    };
    if ["sqlite://", "postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        Ok(url.into())
    } else {
        Err(ConfigError::new(NAME, "must begin with sqlite:// or postgres://"))
    }
}

/// The same.
fn redis_url(source: &Source) -> Result<Option<SecretString>, ConfigError> {
    const NAME: &str = "WRENN_REDIS_URL";
    match source.given(NAME) {
        Some(url) if ["redis://", "rediss://", "unix://"].iter().any(|scheme| url.starts_with(scheme)) => {
            Ok(Some(url.into()))
        }
        Some(_) => Err(ConfigError::new(NAME, "must begin with redis://, rediss:// or unix://")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn refused(toml: &str) -> String {
        Config::from_toml(toml).map(|_| "accepted").unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_stand() {
        let config = Config::from_toml("").unwrap();
        assert_eq!(config.dir, Path::new("/var/lib/wrenn"));
        assert_eq!(config.database_url.expose_secret(), "sqlite:///var/lib/wrenn/wrenn.db");
        assert_eq!(config.public_url.as_str(), "http://127.0.0.1:8080");
        assert_eq!(config.max_body, 2 * 1024 * 1024);
        assert!(config.introspection && config.cors_origins.is_empty());
        assert!(config.proxy_domain.is_none() && config.proxy_paths);
        let (read, default) = (format!("{:?}", config.ws), format!("{:?}", ws::Limits::default()));
        assert_eq!(read, default);
    }

    #[test]
    fn values_are_read() {
        let config = Config::from_toml(
            r#"
            WRENN_DIR = "/srv/wrenn"
            WRENN_API_LISTEN = "[::1]:9000"
            WRENN_CORS_ORIGINS = ["https://a.example", "http://b.example:81"]
            WRENN_INTROSPECTION = false
            WRENN_MAX_BODY = 4096
            WRENN_LOG = "warn,wrenn_api=debug"
            "#,
        )
        .unwrap();
        assert_eq!(config.database_url.expose_secret(), "sqlite:///srv/wrenn/wrenn.db");
        assert_eq!(config.public_url.as_str(), "http://[::1]:9000");
        let origins: Vec<_> = config.cors_origins.iter().map(Origin::as_str).collect();
        assert_eq!(origins, ["https://a.example", "http://b.example:81"]);
        assert_eq!((config.introspection, config.max_body), (false, 4096));
    }

    #[test]
    fn a_wrong_value_is_one_line_with_name_and_reason() {
        for (toml, begin) in [
            ("WRENN_API_LISTEN = 'localhost'", "WRENN_API_LISTEN: `localhost`: invalid socket address"),
            ("WRENN_MAX_BODY = 'big'", "WRENN_MAX_BODY: `big`: invalid digit"),
            ("WRENN_MAX_BODY = 12", "WRENN_MAX_BODY: `12`: must be at least 1024"),
            (
                "WRENN_INTROSPECTION = 'yes'",
                "WRENN_INTROSPECTION: `yes`: provided string was not `true` or `false`",
            ),
            ("WRENN_WS_RECHECK_SEC = 60", "WRENN_WS_RECHECK_SEC: `60`: must be from 1 to 10"),
            (
                "WRENN_WS_WINDOW = 400000",
                "WRENN_WS_WINDOW: `400000`: with WRENN_WS_QUEUE_BYTES (65536) at most 425984, as",
            ),
            (
                "WRENN_WS_QUEUE_BYTES = 400000",
                "WRENN_WS_WINDOW: `262144`: with WRENN_WS_QUEUE_BYTES (400000)",
            ),
            ("WRENN_PUBLIC_URL = 'example.org'", "WRENN_PUBLIC_URL: `example.org`: "),
            ("WRENN_CORS_ORIGINS = 'https://a.example/x'", "WRENN_CORS_ORIGINS: `https://a.example/x`: "),
            ("WRENN_PROXY_DOMAIN = '127.0.0.1'", "WRENN_PROXY_DOMAIN: `127.0.0.1`: is not of the form"),
            (
                "WRENN_PROXY_DOMAIN = 'w.example'\nWRENN_PUBLIC_URL = 'https://api.w.example'",
                "WRENN_PROXY_DOMAIN: `w.example`: https://api.w.example is below it",
            ),
            ("WRENN_LOG = 'loud'", "WRENN_LOG: `loud` is not a level"),
            (
                "WRENN_REDIS_URL = 'http://x'",
                "WRENN_REDIS_URL: must begin with redis://, rediss:// or unix://",
            ),
            ("WRENN_DIR = { a = 1 }", "WRENN_DIR: is not a single value"),
            ("WRENN_DIR =", "WRENN_CONFIG: "),
        ] {
            let message = refused(toml);
            assert!(message.starts_with(begin), "{toml}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn addresses_with_passwords_are_not_printed() {
        let message = refused("WRENN_DATABASE_URL = 'mysql://user:secret@host'");
        assert_eq!(message, "WRENN_DATABASE_URL: must begin with sqlite:// or postgres://");
        let config = Config::from_toml(
            "WRENN_DATABASE_URL = 'postgres://user:secret@host'\nWRENN_REDIS_URL = 'redis://:secret@host'",
        )
        .unwrap();
        assert!(!format!("{config:?}").contains("secret@"));
    }
}
