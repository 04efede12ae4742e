//! A Redis of a test's own: on a socket in a directory of its own, gone with it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use secrecy::SecretString;
use tempfile::TempDir;

/// How long it may take to serve, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct RedisServer {
    directory: TempDir,
    server: Option<Child>,
}

impl RedisServer {
    /// Without the program the test fails: it could not run.
    pub async fn start() -> Self {
        let mut server = Self { directory: tempfile::tempdir().expect("a directory"), server: None };
        server.start_again().await;
        server
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    pub fn url(&self) -> SecretString {
        format!("unix://{}", self.socket().display()).into()
    }

    /// At the same place, with nothing of before in its memory.
    pub async fn start_again(&mut self) {
        let log = std::fs::File::create(self.directory.path().join("log")).expect("a log");
        let server = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .expect("NOT TESTED OVER REDIS: install the package redis-server (`make test` does)");
        self.server = Some(server);
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::UnixStream::connect(self.socket()).await.is_err() {
            assert!(Instant::now() < deadline, "Redis does not serve");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn signal(&self, signal: Signal) {
        let server = self.server.as_ref().expect("it runs");
        kill(Pid::from_raw(server.id().cast_signed()), signal).expect("it can be signalled");
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("it can be killed");
            server.wait().expect("it ends");
            std::fs::remove_file(self.socket()).expect("its socket is left");
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
