//! A host whose power fails: what it had in memory is gone, its disk is as it was at that instant.
//!
//! In the test host one snapshot after another is written to a disk, until the machine is killed. Started again on that
//! disk it has to find the snapshot that was completed last, or a later one, whole.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::timeout;

use crate::disks::{DataDisk, Workshop};
use crate::job::Job;
use crate::machine::{Said, TestHost};

/// What the test binary is told by, and what it says: the same is in `vmm/tests/power.rs`.
const DIRECTORY: &str = "WRENN_TEST_POWER_DIRECTORY";
const JOB: &str = "WRENN_TEST_POWER_JOB";
const COMPLETED: &str = "completed ";
const HOLDS: &str = "holds ";
/// Where the test host has its data disk.
const DATA: &str = "/data";
/// The power fails this much later each time, after a snapshot was completed: about as long as one takes.
const STEP: Duration = Duration::from_millis(37);
/// So many snapshots are completed before, and one more each time: at eight generations they are merged.
const SNAPSHOTS: u32 = 6;

/// Fails if anything is lost.
pub async fn fail(
    workshop: &Workshop,
    data: &DataDisk,
    binary: &Path,
    failures: u32,
    deadline: Duration,
) -> Result<()> {
    let job = |job: &str| Job {
        environment: vec![(DIRECTORY.to_owned(), DATA.to_owned()), (JOB.to_owned(), job.to_owned())],
        binary: binary.to_owned(),
        arguments: Vec::new(),
    };
    let work = workshop.work_disk(&[job("look"), job("pauses")])?;
    let mut completed = 0;
    for life in 0..=failures {
        let mut host = TestHost::start(workshop, &work, Some(data))?;
        let last = life == failures;
        let lived = timeout(deadline, live(&mut host, completed, life, last)).await;
        let lived = lived.unwrap_or_else(|_| bail!("it did not come to its end in {} s", deadline.as_secs()));
        let file_system = data.file_system.name();
        let (found, now) = match lived {
            Ok(numbers) => numbers,
            Err(error) => bail!(
                "after {life} power failures on {file_system}: {error:#}; last the machine said:\n{}",
                host.last_words()
            ),
        };
        if life > 0 {
            println!(
                "power failure {life} on {file_system}: {completed} snapshots were completed, it holds number {found}, whole"
            );
        }
        completed = now;
    }
    Ok(())
}

/// From power on to the failure; the snapshot it found, and the last it completed.
async fn live(host: &mut TestHost, completed: u64, life: u32, last: bool) -> Result<(u64, u64)> {
    let found = look(host).await?;
    ensure!(found >= completed, "{completed} snapshots were completed, it holds number {found}");
    if last {
        host.cut_power()?;
        return Ok((found, found));
    }
    let mut now = found;
    for _ in 0..SNAPSHOTS + life {
        now = next_number(host, COMPLETED).await?.context("the machine ended by itself")?;
    }
    tokio::time::sleep(STEP * life).await;
    host.cut_power()?;
    // What it said before has happened before. The last number may be cut short.
    while let Some(number) = next_number(host, COMPLETED).await? {
        now = now.max(number);
    }
    Ok((found, now))
}

async fn look(host: &mut TestHost) -> Result<u64> {
    let found = next_number(host, HOLDS).await?.context("the machine ended by itself")?;
    match host.next().await? {
        Some(Said::End { status: 0, .. }) => Ok(found),
        other => bail!("looking did not end well: {other:?}"),
    }
}

/// The number in the next line that begins like this; none if the machine ends before.
async fn next_number(host: &mut TestHost, beginning: &str) -> Result<Option<u64>> {
    while let Some(said) = host.next().await? {
        match said {
            Said::Output(line) => match line.strip_prefix(beginning) {
                // The last line may end before its number.
                Some(number) => {
                    if let Ok(number) = number.parse() {
                        return Ok(Some(number));
                    }
                }
                None => println!("{line}"),
            },
            Said::End { job, status } => bail!("job {job} ended with {status}"),
            Said::Up | Said::Begin { .. } | Said::Done => {}
        }
    }
    Ok(None)
}
