//! What the schema is told at its start.

use std::path::PathBuf;

use secrecy::SecretString;

/// Settings of the schema and of what it drives.
#[derive(Clone, Debug)]
pub struct SchemaConfig {
    /// Where this installation keeps its files; the certificate authority lies in `ca` under it.
    pub dir: PathBuf,
    /// Where the replicas of this installation hear of each other's changes; nothing: there is but one.
    pub redis_url: Option<SecretString>,
    /// Where clients reach the server, without a slash at the end; the beginning of URLs that are given out.
    pub public_url: String,
    /// `<port>-<capsule>.` before this is where a port of a capsule is reached, with a port of its own if it has one that
    /// is not that of `public_url`. Without it, ports are reached under paths of the server itself.
    pub proxy_domain: Option<String>,
    /// Whether clients may ask the schema about itself.
    pub introspection: bool,
    /// Levels of nesting in one operation; the introspection query of common tools has 15.
    pub depth_limit: usize,
    /// Fields in one operation, those of lists multiplied by the length asked for; to run a program to its end counts
    /// for 2,000 of them.
    pub complexity_limit: usize,
    /// Bytes of the output of programs that all answers of `exec` together hold until they are sent. Written as JSON they
    /// take up to six times as much.
    pub held_output: usize,
    /// vCPUs given out for each processor of a host.
    pub cpu_overcommit: f64,
    /// MiB of memory given out for each MiB of a host.
    pub memory_overcommit: f64,
    /// MiB of disk given out for each MiB of a host; disks are copy-on-write and rarely filled.
    pub disk_overcommit: f64,
}

impl SchemaConfig {
    /// The defaults, for an installation whose files are under `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            redis_url: None,
            public_url: "http://127.0.0.1:8080".to_owned(),
            proxy_domain: None,
            introspection: true,
            depth_limit: 20,
            complexity_limit: 10_000,
            held_output: 128 * 1024 * 1024,
            cpu_overcommit: 16.0,
            memory_overcommit: 1.0,
            disk_overcommit: 10.0,
        }
    }
}
