//! Machines that run and that no record claims: their agent was killed between starting and recording them.

use std::collections::HashSet;

use wrenn_vmm::network::SlotNumber;
use wrenn_vmm::process::{ProcessError, ProcessIdentity, VmmProcess};

/// Ends every process of these slots' users: nothing else runs as them.
pub async fn end(slots: impl Iterator<Item = SlotNumber>) {
    let uids: HashSet<u32> = slots.map(SlotNumber::uid).collect();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if !real_uid(&status).is_some_and(|uid| uids.contains(&uid)) {
            continue;
        }
        if let Ok(process) = ProcessIdentity::of(pid) {
            tracing::info!(pid, executable = %process.executable.display(), "ending what no record claims");
            kill(&process).await;
        }
    }
}

fn real_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// Ends a process if it is still the one that is meant. Answers whether it was, as far as can be told.
pub async fn kill(process: &ProcessIdentity) -> bool {
    match VmmProcess::adopt(process) {
        Ok(process) => {
            if let Err(error) = process.kill().await {
                tracing::error!(error = %crate::report(&error), "a leftover machine could not be ended");
            }
            true
        }
        Err(ProcessError::Gone(_) | ProcessError::NotTheSame { .. }) => false,
        Err(error) => {
            tracing::error!(error = %crate::report(&error), "a leftover machine could not be looked at");
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_user_is_the_first_of_the_four() {
        assert_eq!(real_uid("Name:\tqemu\nUid:\t70001\t0\t0\t0\nGid:\t0\t0\t0\t0\n"), Some(70001));
        assert_eq!(real_uid("Name:\tqemu\n"), None);
    }
}
