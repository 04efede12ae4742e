//! A terminal in a capsule that gives back what is typed, seen through a socket of the control plane.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wrenn_tests::graphql::{Exec, Frame, Socket, WRITE_PTY, pty_output_query, write_pty_variables};
use wrenn_tests::stack::Stack;

/// A terminal that gives back what it gets, as it is; it says so first.
pub const MIRROR: &str = "stty raw -echo; echo ready; exec cat";
/// What it says first: the line's end is not made two by a raw terminal.
pub const READY: usize = "ready\n".len();

/// Events of the flood that are seen before it counts as one.
const FLOODED: usize = 64;

const FLOOD: &str =
    "subscription($input: ExecInput!) { exec(input: $input) { ... on ProcessOutput { data } } }";

/// A terminal seen through a socket.
pub struct Terminal {
    socket: Socket,
    capsule: String,
    tag: String,
    sequence: u64,
    operations: u64,
    /// Events of the flood that have passed.
    flooded: usize,
}

impl Terminal {
    pub async fn open(stack: &Stack, capsule: &str) -> Result<Self> {
        let client = stack.client();
        let tag = client.open_pty(capsule, MIRROR).await?;
        let mut socket = Socket::connect(client).await?;
        socket.start("screen", &pty_output_query(), json!({ "capsule": capsule, "tag": tag })).await?;
        let capsule = capsule.to_owned();
        let mut terminal = Self { socket, capsule, tag, sequence: 0, operations: 0, flooded: 0 };
        terminal.read(READY).await?;
        Ok(terminal)
    }

    /// Reads until so many bytes of the terminal have come.
    async fn read(&mut self, mut bytes: usize) -> Result<()> {
        while bytes > 0 {
            bytes = bytes.saturating_sub(self.next().await?);
        }
        Ok(())
    }

    /// Bytes of the terminal that the next frame brings.
    async fn next(&mut self) -> Result<usize> {
        let frame = self.socket.next().await?;
        self.note(frame)
    }

    fn note(&mut self, frame: Frame) -> Result<usize> {
        match frame {
            Frame::Next { id, data } if id == "screen" => output_bytes(&data["ptyOutput"]),
            Frame::Next { id, .. } => {
                self.flooded += usize::from(id == "flood");
                Ok(0)
            }
            Frame::Complete { id } if id != "screen" && id != "flood" => Ok(0),
            other => bail!("{other:?} where a terminal should speak"),
        }
    }

    /// From the keystroke to its echo.
    pub async fn echo(&mut self, data: &[u8]) -> Result<Duration> {
        let variables = write_pty_variables(&self.capsule, &self.tag, self.sequence, data);
        self.operations += 1;
        self.sequence += data.len() as u64;
        let begun = Instant::now();
        self.socket.start(&self.operations.to_string(), WRITE_PTY, variables).await?;
        self.read(data.len()).await?;
        Ok(begun.elapsed())
    }

    /// From the protocol's ping to its pong.
    pub async fn ping(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.socket.send(json!({ "type": "ping" })).await?;
        while let Some(frame) = self.socket.next_or_pong().await? {
            ensure!(self.note(frame)? == 0, "the terminal speaks unasked");
        }
        Ok(begun.elapsed())
    }

    /// Looks on for so long, beside a flood; the longest time in which the server did not ping.
    pub async fn longest_without_ping(&mut self, time: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let (mut last, mut seen, mut longest) = (begun, self.socket.pings(), Duration::ZERO);
        while begun.elapsed() < time {
            ensure!(self.next().await? == 0, "the terminal speaks unasked");
            if self.socket.pings() != seen {
                seen = self.socket.pings();
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        Ok(longest.max(last.elapsed()))
    }

    /// Begins a flood from another capsule, by a process of this tag.
    pub async fn flood(&mut self, from: &str, tag: &str) -> Result<()> {
        let flood = Exec::shell(from, "while :; do head -c 1048576 /dev/zero; done").with("tag", tag);
        let input = flood.input();
        self.socket.start("flood", FLOOD, json!({ "input": input })).await?;
        while self.flooded < FLOODED {
            self.next().await?;
        }
        Ok(())
    }
}

fn output_bytes(event: &Value) -> Result<usize> {
    match event["data"].as_str() {
        Some(data) => Ok(STANDARD.decode(data).context("data that is not base64")?.len()),
        None => Ok(0),
    }
}
