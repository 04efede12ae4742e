//! The one table of what can be configured.

/// One variable.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// As it would be written; empty where the meaning says what an absent value does.
    pub(super) default: &'static str,
    meaning: &'static str,
}

const fn setting(name: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting { name, default, meaning }
}

pub(super) const SETTINGS: &[Setting] = &[
    setting("WRENN_CONFIG", "", "TOML file with any of the names below; the environment wins over it"),
    setting("WRENN_DIR", "/var/lib/wrenn", "where everything is kept: database, CA, logs"),
    setting("WRENN_API_LISTEN", "127.0.0.1:8080", "address and port to listen on"),
    setting("WRENN_DATABASE_URL", "", "sqlite://… or postgres://…; $WRENN_DIR/wrenn.db if unset"),
    setting("WRENN_REDIS_URL", "", "redis://…, rediss://… or unix://…, where there are several replicas"),
    setting("WRENN_PUBLIC_URL", "", "where clients reach this server; http://$WRENN_API_LISTEN if unset"),
    setting(
        "WRENN_PROXY_DOMAIN",
        "",
        "domain[:port] below which capsules are: http://<port>-<capsule>.<domain>/",
    ),
    setting(
        "WRENN_PROXY_PATHS",
        "true",
        "whether they are also at /proxy/<capsule>/<port>/, in this server's origin",
    ),
    setting("WRENN_CORS_ORIGINS", "", "origins whose pages may call it, separated by commas"),
    setting("WRENN_INTROSPECTION", "true", "whether the schema may be asked for"),
    setting("WRENN_DEPTH_LIMIT", "20", "deepest nesting of a GraphQL document"),
    setting(
        "WRENN_COMPLEXITY_LIMIT",
        "10000",
        "highest complexity of a GraphQL document; an exec counts 2000",
    ),
    setting("WRENN_CPU_OVERCOMMIT", "16", "vCPUs promised per CPU of a host"),
    setting("WRENN_MEMORY_OVERCOMMIT", "1", "memory promised per byte of a host's"),
    setting("WRENN_DISK_OVERCOMMIT", "10", "disk promised per byte of a host's"),
    setting("WRENN_MAX_BODY", "2097152", "largest HTTP request body, in bytes"),
    setting("WRENN_WS_MAX_MESSAGE", "2097152", "largest incoming WebSocket message, in bytes"),
    setting("WRENN_WS_MAX_OPERATIONS", "100", "operations on one socket at once"),
    setting("WRENN_WS_QUEUE_BYTES", "65536", "bytes that wait per operation before its source is held back"),
    setting("WRENN_WS_QUEUE_FRAMES", "256", "the same in events"),
    setting(
        "WRENN_WS_WINDOW",
        "262144",
        "bytes on the way to a client that it has not confirmed; with the queue at most 425984",
    ),
    setting("WRENN_WS_INIT_SEC", "10", "seconds a new socket has until it is acknowledged"),
    setting("WRENN_WS_PING_SEC", "15", "seconds between pings; two unanswered ones end an idle socket"),
    setting("WRENN_WS_STALL_SEC", "300", "seconds a peer may leave what waits for it untouched"),
    setting("WRENN_WS_RECHECK_SEC", "10", "seconds between looks at whether a socket's key still stands"),
    setting(
        "WRENN_MAX_CONNECTIONS",
        "10000",
        "connections at once, at most one for two open files; further ones wait to be accepted",
    ),
    setting(
        "WRENN_MAX_CONNECTIONS_PER_PEER",
        "0",
        "those of one address (IPv6: /64), further ones are closed; 0 for no limit, as behind a reverse proxy",
    ),
    setting("WRENN_SEND_BUFFER", "131072", "bytes the kernel may hold per connection for a slow reader"),
    setting("WRENN_SHUTDOWN_SEC", "30", "seconds requests under way have at shutdown"),
    setting("WRENN_LOG", "info", "error, warn, info, debug, trace or off; also target=level, by commas"),
];

/// The table as `--help` prints it.
pub fn table() -> String {
    let width = |column: fn(&Setting) -> &str| {
        SETTINGS.iter().map(|setting| column(setting).len()).max().unwrap_or_default()
    };
    let (names, defaults) = (width(|setting| setting.name), width(|setting| setting.default));
    let mut table = format!("Configuration:\n  {:names$}  {:defaults$}  Meaning\n", "Variable", "Default");
    for Setting { name, default, meaning } in SETTINGS {
        let default = if default.is_empty() { "-" } else { default };
        table.push_str(&format!("  {name:names$}  {default:defaults$}  {meaning}\n"));
    }
    table
}
