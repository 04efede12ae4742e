//! Merging what a machine's memory is based on, while it runs.
//!
//! A resume from many generations would else take longer and longer, and a pause would link more and more files. It
//! is done between the two, where nobody waits for it: whoever stops the vCPUs stops it first, and the next life begins it
//! anew.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::task::JoinHandle;

use crate::memory::{Generations, MERGE_AT, MemoryError, merge};

/// A merge that may be under way. Dropping it stops it.
pub struct Merging {
    stop: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Merging {
    /// Merges the generations in `directory` if there are many.
    pub fn start(directory: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let task = tokio::task::spawn_blocking(move || {
            if let Err(error) = merge_many(&directory, &until) {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(path = %directory.display(), error, "generations stay unmerged");
            }
        });
        Self { stop, task: Some(task) }
    }

    /// Stops it, and waits until nothing is written any more.
    pub async fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            // A merge that panicked has said so itself, and left everything as it was.
            let _ = task.await;
        }
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn merge_many(directory: &Path, stop: &AtomicBool) -> Result<(), MemoryError> {
    if Generations::open(directory)?.count() >= MERGE_AT {
        let merged = merge(directory, stop)?;
        tracing::debug!(path = %directory.display(), ?merged, "generations");
    }
    Ok(())
}
