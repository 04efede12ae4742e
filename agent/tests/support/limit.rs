//! A test that hangs says so: it must not keep everybody waiting, nor leave its guests behind.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use wrenn_vmm::network::SlotRange;

/// The longest of these tests takes a tenth of it on the slowest machine they were seen on.
const LIMIT: Duration = Duration::from_secs(600);

/// Ends the process unless it is dropped in time.
pub struct Limit {
    _over: Sender<()>,
}

impl Limit {
    pub fn begin(slots: SlotRange) -> Self {
        let (sender, over) = mpsc::channel::<()>();
        let test = thread::current().name().unwrap_or("a test").to_owned();
        thread::spawn(move || {
            if over.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                super::end_processes(&slots);
                // Not by `eprintln!`, which the harness keeps to itself.
                let _shown = writeln!(std::io::stderr(), "{test} has not ended within {LIMIT:?}");
                std::process::abort();
            }
        });
        Self { _over: sender }
    }
}
