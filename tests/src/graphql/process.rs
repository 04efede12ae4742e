//! Processes through GraphQL: `exec` to the end, and streams of output.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Cause, Client, Failure, Subscription};

/// Input of `exec` and `startProcess`.
#[derive(Debug, Clone)]
pub struct Exec(Value);

impl Exec {
    pub fn shell(capsule: &str, command: &str) -> Self {
        Self(json!({ "capsuleId": capsule, "command": command }))
    }

    pub fn argv(capsule: &str, argv: &[&str]) -> Self {
        Self(json!({ "capsuleId": capsule, "argv": argv }))
    }

    /// Any further field of `ExecInput`.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0[field] = value.into();
        self
    }

    pub fn stdin(self, bytes: &[u8]) -> Self {
        self.with("stdin", STANDARD.encode(bytes))
    }

    pub fn input(&self) -> Value {
        self.0.clone()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    pub pid: i64,
    pub exit_code: Option<i64>,
    pub signal: Option<String>,
    stdout: String,
    stderr: String,
    pub stdout_encoding: String,
    pub stderr_encoding: String,
    pub truncated: bool,
    pub duration_ms: i64,
}

impl ExecResult {
    pub fn stdout(&self) -> Result<Vec<u8>> {
        decode(&self.stdout, &self.stdout_encoding)
    }

    pub fn stderr(&self) -> Result<Vec<u8>> {
        decode(&self.stderr, &self.stderr_encoding)
    }

    /// Standard output as text without the last line's end.
    pub fn line(&self) -> Result<String> {
        Ok(String::from_utf8(self.stdout()?)?.trim_end().to_owned())
    }
}

fn decode(text: &str, encoding: &str) -> Result<Vec<u8>> {
    match encoding {
        "UTF8" => Ok(text.as_bytes().to_vec()),
        "BASE64" => STANDARD.decode(text).context("output said to be base64"),
        other => bail!("an encoding nobody knows: {other}"),
    }
}

/// One event of `exec` or `processOutput`.
#[derive(Debug, Clone, PartialEq)]
pub enum ProcessEvent {
    Started { pid: i64, tag: String },
    Output { stream: String, sequence: u64, data: Vec<u8> },
    Gap { stream: String, from: u64, to: u64 },
    Resized { columns: i64, rows: i64 },
    Exited { exit_code: Option<i64>, signal: Option<String>, cause: Option<Cause> },
}

pub(super) const EVENT_FIELDS: &str = "__typename
    ... on ProcessStarted { pid tag }
    ... on ProcessOutput { stream sequence data }
    ... on ProcessGap { stream from to }
    ... on ProcessExited { exitCode signal cause { code message } }";

impl ProcessEvent {
    pub fn parse(event: &Value) -> Result<Self> {
        let text = |field: &str| {
            event[field].as_str().map(str::to_owned).with_context(|| format!("`{field}` of {event:.200}"))
        };
        let offset = |field: &str| -> Result<u64> { Ok(text(field)?.parse()?) };
        Ok(match text("__typename")?.as_str() {
            "ProcessStarted" => {
                Self::Started { pid: event["pid"].as_i64().context("pid")?, tag: text("tag")? }
            }
            "ProcessOutput" => Self::Output {
                stream: text("stream")?,
                sequence: offset("sequence")?,
                data: STANDARD.decode(text("data")?).context("data that is not base64")?,
            },
            "ProcessGap" => Self::Gap { stream: text("stream")?, from: offset("from")?, to: offset("to")? },
            "PtyResized" => Self::Resized {
                columns: event["columns"].as_i64().context("columns")?,
                rows: event["rows"].as_i64().context("rows")?,
            },
            "ProcessExited" => Self::Exited {
                exit_code: event["exitCode"].as_i64(),
                signal: event["signal"].as_str().map(str::to_owned),
                cause: Option::<Cause>::deserialize(&event["cause"])?,
            },
            other => bail!("an event nobody knows: {other}"),
        })
    }
}

/// A subscription to a process, read event by event.
pub struct ProcessStream {
    subscription: Subscription,
    field: &'static str,
}

impl ProcessStream {
    pub(super) fn new(subscription: Subscription, field: &'static str) -> Self {
        Self { subscription, field }
    }

    /// Nothing once the stream is complete.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        match self.subscription.next().await? {
            Some(data) => ProcessEvent::parse(&data[self.field]).map(Some),
            None => Ok(None),
        }
    }

    pub async fn next_within(&mut self, deadline: Duration) -> Result<Option<ProcessEvent>> {
        tokio::time::timeout(deadline, self.next())
            .await
            .with_context(|| format!("no process event within {deadline:?}"))?
    }

    /// The first event, which every stream of a process must begin with.
    pub async fn started(&mut self) -> Result<(i64, String)> {
        match self.next_within(Duration::from_secs(30)).await? {
            Some(ProcessEvent::Started { pid, tag }) => Ok((pid, tag)),
            other => bail!("a stream began with {other:?}"),
        }
    }

    /// Reads on to the end, keeping what came; `silence` is the longest time without an event.
    pub async fn collect(&mut self, silence: Duration) -> Result<Collected> {
        let mut collected = Collected::default();
        while let Some(event) = self.next_within(silence).await? {
            collected.take(event)?;
        }
        Ok(collected)
    }

    /// Reads on to where the stream breaks off because of its capsule or its host, and gives the code of the cause.
    pub async fn broken_off(&mut self, collected: &mut Collected, silence: Duration) -> Result<String> {
        loop {
            match self.next_within(silence).await {
                Ok(Some(ProcessEvent::Exited { exit_code: None, signal: None, cause: Some(cause) })) => {
                    return Ok(cause.code);
                }
                Ok(Some(event @ (ProcessEvent::Output { .. } | ProcessEvent::Started { .. }))) => {
                    collected.take(event)?;
                }
                Ok(other) => bail!("{other:?} where a stream should have broken off"),
                Err(error) => return typed_cause(error),
            }
        }
    }
}

/// What made a stream break off: the code of its cause, which must be there.
fn typed_cause(error: anyhow::Error) -> Result<String> {
    let failure = error.downcast::<Failure>().context("a stream broke off without a typed cause")?;
    failure.first().cause().map(str::to_owned).with_context(|| format!("{failure} names no cause"))
}

/// What a stream brought, with its order checked on the way.
#[derive(Debug, Default, Clone)]
pub struct Collected {
    pub pid: Option<i64>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Offset of the first byte of standard output that came.
    pub stdout_from: Option<u64>,
    pub gaps: Vec<(String, u64, u64)>,
    pub exit: Option<ProcessEvent>,
}

impl Collected {
    pub fn take(&mut self, event: ProcessEvent) -> Result<()> {
        ensure!(self.exit.is_none(), "{event:?} after the exit");
        match event {
            ProcessEvent::Started { pid, .. } => self.pid = Some(pid),
            ProcessEvent::Output { stream, sequence, data } if stream == "STDOUT" => {
                let from = *self.stdout_from.get_or_insert(sequence);
                let expected = from + self.stdout.len() as u64;
                ensure!(sequence == expected, "standard output at {sequence} where {expected} was due");
                self.stdout.extend(data);
            }
            ProcessEvent::Output { data, .. } => self.stderr.extend(data),
            resized @ ProcessEvent::Resized { .. } => bail!("{resized:?} of a process without a terminal"),
            ProcessEvent::Gap { stream, from, to } => self.gaps.push((stream, from, to)),
            exited @ ProcessEvent::Exited { .. } => self.exit = Some(exited),
        }
        Ok(())
    }

    /// Offset of the byte of standard output that is due next.
    pub fn next_offset(&self) -> u64 {
        self.stdout_from.unwrap_or_default() + self.stdout.len() as u64
    }
}

/// A hash of standard output taken on the fly, for streams too long to keep.
#[derive(Default)]
pub struct OutputHash {
    hash: Sha256,
    pub length: u64,
}

impl OutputHash {
    pub fn take(&mut self, sequence: u64, data: &[u8]) -> Result<()> {
        ensure!(sequence == self.length, "output at {sequence} where {} was due", self.length);
        self.hash.update(data);
        self.length += data.len() as u64;
        Ok(())
    }

    /// The digest in hexadecimal digits.
    pub fn finish(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Client {
    pub async fn exec(&self, exec: Exec) -> Result<ExecResult> {
        let query = "mutation($input: ExecInput!) { exec(input: $input) {
            pid exitCode signal stdout stderr stdoutEncoding stderrEncoding truncated durationMs
        } }";
        self.get("exec", query, json!({ "input": exec.input() })).await
    }

    /// Standard output of a shell line that must end well.
    pub async fn sh(&self, capsule: &str, command: &str) -> Result<String> {
        let result = self.exec(Exec::shell(capsule, command)).await.with_context(|| command.to_owned())?;
        ensure!(
            result.exit_code == Some(0),
            "`{command}` ended with {:?} {:?}: {}",
            result.exit_code,
            result.signal,
            String::from_utf8_lossy(&result.stderr()?)
        );
        result.line()
    }

    /// Pid and tag of a process started in the background.
    pub async fn start(&self, exec: Exec) -> Result<(i64, String)> {
        let query = "mutation($input: ExecInput!) { startProcess(input: $input) { process { pid tag } } }";
        let payload: Value = self.get("startProcess", query, json!({ "input": exec.input() })).await?;
        let process = &payload["process"];
        Ok((process["pid"].as_i64().context("pid")?, process["tag"].as_str().context("tag")?.to_owned()))
    }

    pub async fn exec_stream(&self, exec: Exec) -> Result<ProcessStream> {
        let query =
            format!("subscription($input: ExecInput!) {{ exec(input: $input) {{ {EVENT_FIELDS} }} }}");
        let subscription = self.subscribe(&query, json!({ "input": exec.input() })).await?;
        Ok(ProcessStream { subscription, field: "exec" })
    }

    /// `after` is the offset of the first byte of standard output wanted; everything still held if none.
    pub async fn process_output(
        &self,
        capsule: &str,
        selector: &str,
        after: Option<u64>,
    ) -> Result<ProcessStream> {
        let query = format!(
            "subscription($capsule: ID!, $selector: String!, $after: OutputCursor) {{
                processOutput(capsuleId: $capsule, selector: $selector, after: $after) {{ {EVENT_FIELDS} }}
            }}"
        );
        let after = after.map(|offset| json!({ "stdout": offset.to_string() }));
        let variables = json!({ "capsule": capsule, "selector": selector, "after": after });
        let subscription = self.subscribe(&query, variables).await?;
        Ok(ProcessStream { subscription, field: "processOutput" })
    }

    /// The processes of a capsule as `capsule.processes` lists them.
    pub async fn processes(&self, capsule: &str) -> Result<Vec<Value>> {
        let query = "query($id: ID!) { capsule(id: $id) { processes {
            pid tag command user cwd startedAt pty running exitCode signal
        } } }";
        let found: Value = self.get("capsule", query, json!({ "id": capsule })).await?;
        found["processes"].as_array().cloned().context("processes")
    }

    /// Answers with the offset the next input must carry.
    pub async fn write_stdin(
        &self,
        capsule: &str,
        selector: &str,
        sequence: u64,
        data: &[u8],
    ) -> Result<u64> {
        let query = "mutation($capsule: ID!, $selector: String!, $sequence: BigInt!, $data: Base64!) {
            writeStdin(capsuleId: $capsule, selector: $selector, sequence: $sequence, data: $data) { nextSequence }
        }";
        let variables = json!({
            "capsule": capsule, "selector": selector,
            "sequence": sequence.to_string(), "data": STANDARD.encode(data),
        });
        let payload: Value = self.get("writeStdin", query, variables).await?;
        Ok(payload["nextSequence"].as_str().context("nextSequence")?.parse()?)
    }

    pub async fn close_stdin(&self, capsule: &str, selector: &str) -> Result<Value> {
        let query = "mutation($capsule: ID!, $selector: String!) {
            closeStdin(capsuleId: $capsule, selector: $selector) { nextSequence }
        }";
        self.run(query, json!({ "capsule": capsule, "selector": selector })).await
    }

    pub async fn signal(&self, capsule: &str, selector: &str, signal: &str) -> Result<Value> {
        let query = "mutation($capsule: ID!, $selector: String!, $signal: Signal!) {
            signalProcess(capsuleId: $capsule, selector: $selector, signal: $signal) { process { pid tag running } }
        }";
        self.run(query, json!({ "capsule": capsule, "selector": selector, "signal": signal })).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_events() {
        let event =
            json!({ "__typename": "ProcessOutput", "stream": "STDOUT", "sequence": "7", "data": "aGk=" });
        assert_eq!(
            ProcessEvent::parse(&event).expect("an event"),
            ProcessEvent::Output { stream: "STDOUT".into(), sequence: 7, data: b"hi".to_vec() }
        );
        let event = json!({ "__typename": "ProcessExited", "exitCode": null, "signal": null,
                            "cause": { "code": "VMM_DIED", "message": "gone" } });
        let ProcessEvent::Exited { cause: Some(cause), .. } = ProcessEvent::parse(&event).expect("an event")
        else {
            panic!("no cause")
        };
        assert_eq!(cause.code, "VMM_DIED");
    }

    #[test]
    fn notices_output_out_of_order() {
        let output = |sequence| ProcessEvent::Output { stream: "STDOUT".into(), sequence, data: vec![0; 4] };
        let mut collected = Collected::default();
        collected.take(output(8)).expect("the first may begin anywhere");
        collected.take(output(12)).expect("in order");
        assert!(collected.take(output(20)).is_err());
        assert_eq!(collected.next_offset(), 16);
    }

    #[test]
    fn hashes_as_sha256sum_does() {
        let mut hash = OutputHash::default();
        hash.take(0, b"a").expect("in order");
        hash.take(1, b"bc").expect("in order");
        assert!(hash.take(9, b"x").is_err());
        assert_eq!(hash.finish(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
