//! The TypeScript SDK and its command line: their own tests, run by Node against the stack.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use wrenn_tests::stack::Stack;

/// Lines of a failed run that are shown.
const SHOWN: usize = 150;

pub async fn passes_its_own_tests(stack: Arc<Stack>) -> Result<()> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../codegen/typescript");
    install(&package).await?;
    let client = stack.client();
    let url = client.websocket_url().replacen("ws", "http", 1);
    let mut tests = npm(&package, &["run", "test:stack"]);
    tests.env("WRENN_URL", url).env("WRENN_API_KEY", client.key().context("the client's key")?);
    succeeds(tests).await
}

/// What the package needs, unless it is there as the lock file wants it.
async fn install(package: &Path) -> Result<()> {
    let modified = |path: PathBuf| std::fs::metadata(path)?.modified();
    let wanted = modified(package.join("package-lock.json")).context("the package's lock file")?;
    if modified(package.join("node_modules/.package-lock.json")).is_ok_and(|installed| installed >= wanted) {
        return Ok(());
    }
    succeeds(npm(package, &["ci"])).await
}

fn npm(package: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("npm");
    command.args(arguments).current_dir(package).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn succeeds(mut command: Command) -> Result<()> {
    let output = command.output().await.context("running npm")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let shown = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    ensure!(output.status.success(), "{:?}: {}\n{shown}", command.as_std(), output.status);
    Ok(())
}
