//! A program that uses the SDK does not notice what dies between it and its capsule.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::ChildStdout;
use wrenn_tests::node;
use wrenn_tests::stack::Stack;

const PATIENCE: Duration = Duration::from_secs(120);

/// Where the program lets others do their work.
const MARKS: usize = 10;

pub async fn streams_go_on_over_restarts(stack: &Stack) -> Result<()> {
    let mut command = node::program("restarts", stack.client()).await?;
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("running node")?;
    let mut orders = program.stdin.take().context("its input")?;
    let mut lines = BufReader::new(program.stdout.take().context("its output")?).lines();
    for mark in 1..=MARKS {
        ensure!(line(&mut lines).await? == format!("mark {mark}"));
        // The program still reads its connection; nobody waits for it to notice.
        if mark % 2 == 0 {
            stack.kill9_api().await?;
            stack.start_api().await?;
        } else {
            stack.host().kill9().await?;
            stack.host().start(None).await?;
        }
        orders.write_all(b"on\n").await?;
    }
    ensure!(line(&mut lines).await? == "output true", "what came is not what was written");
    ensure!(line(&mut lines).await? == "input true", "what was taken is not what was sent");
    let ended = tokio::time::timeout(PATIENCE, program.wait()).await.context("its end")??;
    ensure!(ended.success(), "the program ended with {ended}");
    Ok(())
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("the program fell silent")?;
    line?.context("the program ended early; its error stands above")
}
