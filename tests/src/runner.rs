//! How async tests become trials of `libtest-mimic`: filters, `--list` and output as with any Rust test.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

/// Tests that run at the same time unless `--test-threads` says otherwise: each drives several processes
/// and virtual machines, and two cores have no more than that to give.
const PARALLEL: usize = 2;

pub fn runtime() -> Result<Arc<Runtime>> {
    Ok(Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?))
}

/// The command line, with this suite's defaults.
pub fn arguments() -> Arguments {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(PARALLEL);
    arguments
}

/// Says loudly why nothing could be tested, and fails: a suite that cannot run has not passed.
pub fn refuse(error: &anyhow::Error) -> ExitCode {
    eprintln!("\nCANNOT RUN: {error:#}\nNothing was tested. This counts as a failure.\n");
    ExitCode::FAILURE
}

/// What every stack needs: root, for network namespaces and mounts, and the assets.
pub fn check_prerequisites() -> Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "these tests make network namespaces and mounts: be root"
    );
    crate::assets::directory()?;
    crate::binaries::find("wrenn-api")?;
    crate::binaries::find("wrenn-agent")?;
    Ok(())
}

/// A trial that runs `test` to its end.
pub fn trial<F, Fut>(name: String, runtime: &Arc<Runtime>, test: F) -> Trial
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>>,
{
    let runtime = Arc::clone(runtime);
    // Boxed: a test's future may be larger than its thread's stack should hold.
    Trial::test(name, move || {
        runtime.block_on(Box::pin(test())).map_err(|error| Failed::from(describe(&error)))
    })
}

fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let _ = write!(text, "\n  because: {cause}");
    }
    text
}

/// What a panic said.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a word"))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_failure_shows_the_whole_chain() {
        let error = Err::<(), _>(anyhow::anyhow!("no route")).context("pausing").expect_err("an error");
        assert_eq!(describe(&error), "pausing\n  because: no route");
    }
}
