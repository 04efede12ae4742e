//! A process of the system under test: started with a log of its own, ended by its own handle only.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// What to start, kept so that it can be started again after it was killed.
#[derive(Debug, Clone)]
pub struct DaemonSpec {
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// The whole `WRENN_*` environment; whatever the caller's own says is not inherited.
    pub environment: Vec<(String, OsString)>,
    /// Standard output and error are appended to it.
    pub log: PathBuf,
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    spec: DaemonSpec,
    child: Child,
    pid: u32,
}

impl Daemon {
    pub fn start(spec: DaemonSpec) -> Result<Self> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)
            .with_context(|| format!("opening {}", spec.log.display()))?;
        let mut command = Command::new(&spec.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WRENN_"))
        {
            command.env_remove(name);
        }
        let child = command
            .args(&spec.arguments)
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", spec.program.display()))?;
        let pid = child.id().context("a child just started has a pid")?;
        Ok(Self { spec, child, pid })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn spec(&self) -> &DaemonSpec {
        &self.spec
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Ends it without warning and waits until the kernel has taken it away.
    pub async fn kill9(mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.spec.name))
    }

    /// Asks it to end and waits for `patience`; what does not end by then is killed, and that is an error.
    pub async fn terminate(mut self, patience: Duration) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGTERM)
                .with_context(|| format!("sending SIGTERM to {}", self.spec.name))?;
        }
        match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                anyhow::ensure!(status.success(), "{} ended with {status} on SIGTERM", self.spec.name);
                Ok(())
            }
            Err(_) => {
                self.child.kill().await?;
                anyhow::bail!("{} did not end within {patience:?} of SIGTERM", self.spec.name)
            }
        }
    }
}

/// The last `lines` lines of a file, each marked with the file's name; empty if there is no such file.
pub fn tail(log: &Path, lines: usize) -> String {
    let Ok(bytes) = fs::read(log) else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("{name} | {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_gives_the_last_lines() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "one\ntwo\nthree\n").expect("written");
        let tail = tail(file.path(), 2);
        assert!(!tail.contains("one") && tail.contains("| two\n") && tail.ends_with("| three\n"), "{tail}");
    }
}
