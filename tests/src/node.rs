//! The TypeScript SDK's own tests and programs, run by Node.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use crate::graphql::Client;

/// The longest that a script may take.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Lines of a failed run that are shown.
const SHOWN: usize = 150;

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../codegen/typescript")
}

/// A script of the package, against the client's server; it must end well.
pub async fn script(name: &str, client: &Client) -> Result<()> {
    built().await?;
    let mut command = npm(&["run", name]);
    point(&mut command, client)?;
    succeeds(command).await
}

/// One of the package's test programs, against the client's server.
pub async fn program(name: &str, client: &Client) -> Result<Command> {
    built().await?;
    let mut command = Command::new("node");
    command.arg(format!("build/test/programs/{name}.js")).current_dir(package()).kill_on_drop(true);
    point(&mut command, client)?;
    Ok(command)
}

fn point(command: &mut Command, client: &Client) -> Result<()> {
    let url = client.websocket_url().replacen("ws", "http", 1);
    command.env("WRENN_URL", url).env("WRENN_API_KEY", client.key().context("the client's key")?);
    Ok(())
}

/// Builds the package, once, with what it needs as its lock file wants it.
async fn built() -> Result<()> {
    static BUILT: OnceCell<()> = OnceCell::const_new();
    BUILT
        .get_or_try_init(async || {
            if !is_installed()? {
                succeeds(npm(&["ci"])).await?;
            }
            succeeds(npm(&["run", "build:tests"])).await
        })
        .await?;
    Ok(())
}

fn is_installed() -> Result<bool> {
    let modified = |name: &str| std::fs::metadata(package().join(name))?.modified();
    let wanted = modified("package-lock.json").context("the package's lock file")?;
    Ok(modified("node_modules/.package-lock.json").is_ok_and(|installed| installed >= wanted))
}

fn npm(arguments: &[&str]) -> Command {
    let mut command = Command::new("npm");
    command.args(arguments).current_dir(package()).kill_on_drop(true).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The processes that a script starts: npm itself passes no end on. Dropping it ends them.
struct Group(Pid);

impl Group {
    fn of(leader: &Child) -> Result<Self> {
        let pid = leader.id().context("a child just started has a pid")?;
        Ok(Self(Pid::from_raw(pid.cast_signed())))
    }

    fn end(&self) {
        // Gone already is as good.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

async fn succeeds(mut command: Command) -> Result<()> {
    let child = command.spawn().context("running npm: Node.js 20.11 or newer is needed")?;
    let group = Group::of(&child)?;
    let mut ending = std::pin::pin!(child.wait_with_output());
    let output = match tokio::time::timeout(LIMIT, &mut ending).await {
        Ok(output) => output?,
        // So that what it has said is shown.
        Err(_) => {
            group.end();
            ending.await?
        }
    };
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let shown = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    ensure!(output.status.success(), "{:?}: {}\n{shown}", command.as_std(), output.status);
    Ok(())
}
