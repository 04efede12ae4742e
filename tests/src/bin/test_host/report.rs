//! Runs jobs and says what came of them.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::timeout_at;

use crate::disks::Workshop;
use crate::job::Job;
use crate::machine::{Said, TestHost};

/// Whether all jobs passed.
pub async fn run(workshop: &Workshop, jobs: &[Job], deadline: Duration) -> Result<bool> {
    let work = workshop.work_disk(jobs)?;
    let begun = Instant::now();
    let mut host = TestHost::start(workshop, &work, None)?;
    let until = tokio::time::Instant::now() + deadline;
    let mut outcomes = vec![Outcome::DidNotRun; jobs.len()];
    let mut trouble = None;
    loop {
        let Ok(said) = timeout_at(until, host.next()).await else {
            trouble = Some(format!("it had {} s and has not ended", deadline.as_secs()));
            break;
        };
        match said? {
            Some(Said::Up) => println!("test host: up after {:.1} s", begun.elapsed().as_secs_f64()),
            Some(Said::Begin { job }) => {
                println!("\ntest host: {}", jobs[job].name());
                outcomes[job] = Outcome::DidNotEnd { begun: Instant::now() };
            }
            Some(Said::Output(line)) => println!("{line}"),
            Some(Said::End { job, status }) => outcomes[job] = outcomes[job].ended(status),
            Some(Said::Done) => break,
            None => {
                trouble = Some("the machine ended before its jobs".to_owned());
                break;
            }
        }
    }
    if let Some(trouble) = &trouble {
        println!("\ntest host: {trouble}; last it said:\n{}", host.last_words());
    }
    println!();
    for (job, outcome) in jobs.iter().zip(&outcomes) {
        println!("{:<24} {}", outcome.describe(), job.name());
    }
    let passed = outcomes.iter().filter(|outcome| outcome.passed()).count();
    println!("{passed} passed, {} failed", jobs.len() - passed);
    Ok(trouble.is_none() && passed == jobs.len())
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    DidNotRun,
    DidNotEnd { begun: Instant },
    Ended { status: i32, took: Duration },
}

impl Outcome {
    fn ended(self, status: i32) -> Self {
        match self {
            Self::DidNotEnd { begun } => Self::Ended { status, took: begun.elapsed() },
            // Without a beginning there is no end to believe.
            other => other,
        }
    }

    fn passed(self) -> bool {
        matches!(self, Self::Ended { status: 0, .. })
    }

    fn describe(self) -> String {
        match self {
            Self::DidNotRun => "DID NOT RUN".to_owned(),
            Self::DidNotEnd { .. } => "DID NOT END".to_owned(),
            Self::Ended { status: 0, took } => format!("passed in {:.1} s", took.as_secs_f64()),
            Self::Ended { status, took } => format!("FAILED ({status}) in {:.1} s", took.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_began_and_ended_well_has_passed() {
        let begun = Outcome::DidNotEnd { begun: Instant::now() };
        assert!(begun.ended(0).passed());
        assert!(!begun.ended(101).passed());
        assert!(!begun.passed() && !Outcome::DidNotRun.passed() && !Outcome::DidNotRun.ended(0).passed());
        assert!(begun.ended(101).describe().starts_with("FAILED (101)"));
    }
}
