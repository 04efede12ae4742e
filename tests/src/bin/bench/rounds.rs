//! The measurements: in every round each thing is done once bare and once by Wrenn, taking turns in who begins.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::agent::Agent;
use wrenn_tests::graphql::Exec;
use wrenn_tests::guest::Guest;
use wrenn_tests::stack::Stack;

use crate::bare::{Saved, Workbench};
use crate::table::{Promise, Row};

/// Round trips of `exec` in each round: they are short and cost little.
const EXECS: usize = 5;

pub struct Rounds<'a> {
    stack: &'a Stack,
    agent: Agent,
    bench: &'a Workbench,
    template: &'a Saved,
    create: Row,
    create_alone: Row,
    exec: Row,
    exec_by_agent: Row,
    pause: Row,
    resume: Row,
    resume_to_exec: Row,
}

impl<'a> Rounds<'a> {
    pub async fn new(stack: &'a Stack, bench: &'a Workbench, template: &'a Saved) -> Result<Self> {
        let agent = Agent::connect(&stack.authority(), stack.host().id(), stack.host().address()).await?;
        let restore = "bare restore to first TCP answer";
        let save = "bare stop, save, fsync, end";
        Ok(Self {
            stack,
            agent,
            bench,
            template,
            create: Row::new("`createCapsule` to first `exec` output", restore, Promise::Times(2.0)),
            create_alone: Row::new("`createCapsule` alone", "bare restore to TCP accepted", Promise::None),
            exec: Row::new("`exec` of `true`", "envd called directly", Promise::Plus(3.0)),
            exec_by_agent: Row::new(
                "of which: the agent called directly",
                "envd called directly",
                Promise::None,
            ),
            pause: Row::new("`pauseCapsule`", save, Promise::Times(3.0)),
            resume: Row::new("`resumeCapsule`", restore, Promise::Times(3.0)),
            resume_to_exec: Row::new("`resumeCapsule` to first `exec` output", restore, Promise::None),
        })
    }

    pub fn into_rows(self) -> Vec<Row> {
        vec![
            self.create,
            self.create_alone,
            self.exec,
            self.exec_by_agent,
            self.pause,
            self.resume,
            self.resume_to_exec,
        ]
    }

    /// One life of a bare machine and one of a capsule, side by side.
    pub async fn run(&mut self, round: usize) -> Result<()> {
        let bare_first = round.is_multiple_of(2);
        let (mut machine, mut capsule) = (None, None);
        for bare in [bare_first, !bare_first] {
            if bare {
                machine = Some(self.bare_restore()?);
            } else {
                capsule = Some(self.create().await?);
            }
        }
        let (machine, capsule) = (machine.context("a machine")?, capsule.context("a capsule")?);
        self.execs(&capsule, bare_first).await?;

        let mut machine = Some(machine);
        let mut saved = None;
        for bare in [bare_first, !bare_first] {
            if bare {
                let (state, took) = self.bench.save(machine.take().context("a machine")?)?;
                self.pause.baseline.push(took);
                saved = Some(state);
            } else {
                self.pause(&capsule).await?;
            }
        }
        let saved = saved.context("a saved machine")?;
        for bare in [bare_first, !bare_first] {
            if bare {
                let (resumed, answered) = self.bench.restore(&saved, false)?;
                self.resume.baseline.push(answered.answered);
                self.resume_to_exec.baseline.push(answered.answered);
                machine = Some(resumed);
            } else {
                self.resume(&capsule).await?;
            }
        }
        machine.context("a machine")?.end()?;
        self.stack.client().destroy(&capsule).await?;
        Ok(())
    }

    fn bare_restore(&mut self) -> Result<crate::bare::Machine> {
        let (machine, answered) = self.bench.restore(self.template, true)?;
        self.create.baseline.push(answered.answered);
        self.create_alone.baseline.push(answered.connected);
        Ok(machine)
    }

    async fn create(&mut self) -> Result<String> {
        let client = self.stack.client();
        let begun = Instant::now();
        let id = client.create(json!({})).await?.id;
        self.create_alone.wrenn.push(begun.elapsed());
        echo(self.stack, &id).await?;
        self.create.wrenn.push(begun.elapsed());
        Ok(id)
    }

    async fn execs(&mut self, capsule: &str, direct_first: bool) -> Result<()> {
        let mut guest = Guest::connect(&self.stack.host_of(capsule)?.record_path(capsule)).await?;
        // Once each before it counts: the direct channel was opened a moment ago, the agent's long before.
        guest.exec(&["/bin/true"]).await?;
        let run = Exec::argv(capsule, &["/bin/true"]);
        self.stack.client().exec(run.clone()).await?;
        self.agent.exec(capsule, &["/bin/true"]).await?;
        for _ in 0..EXECS {
            for direct in [direct_first, !direct_first] {
                let begun = Instant::now();
                if direct {
                    ensure!(guest.exec(&["/bin/true"]).await?.exit_code == Some(0));
                    self.exec.baseline.push(begun.elapsed());
                    self.exec_by_agent.baseline.push(begun.elapsed());
                } else {
                    ensure!(self.stack.client().exec(run.clone()).await?.exit_code == Some(0));
                    self.exec.wrenn.push(begun.elapsed());
                }
            }
            let begun = Instant::now();
            ensure!(self.agent.exec(capsule, &["/bin/true"]).await?.exit_code == Some(0));
            self.exec_by_agent.wrenn.push(begun.elapsed());
        }
        Ok(())
    }

    async fn pause(&mut self, capsule: &str) -> Result<()> {
        self.pause.wrenn.push(timed(self.stack.client().pause(capsule)).await?);
        Ok(())
    }

    async fn resume(&mut self, capsule: &str) -> Result<()> {
        let begun = Instant::now();
        self.stack.client().resume(capsule).await?;
        self.resume.wrenn.push(begun.elapsed());
        echo(self.stack, capsule).await?;
        self.resume_to_exec.wrenn.push(begun.elapsed());
        Ok(())
    }
}

pub async fn echo(stack: &Stack, capsule: &str) -> Result<()> {
    let result = stack.client().exec(Exec::argv(capsule, &["/bin/echo", "here"])).await?;
    ensure!(result.stdout()? == b"here\n", "{result:?}");
    Ok(())
}

async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<Duration> {
    let begun = Instant::now();
    work.await?;
    Ok(begun.elapsed())
}
