//! Terminals through GraphQL.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::process::EVENT_FIELDS;
use super::{Client, ProcessEvent, ProcessStream};

/// A write into a terminal as an operation: for those who send it over a socket of theirs.
pub const WRITE_PTY: &str = "mutation($capsule: ID!, $tag: String!, $sequence: BigInt!, $data: Base64!) {
    writePty(capsuleId: $capsule, tag: $tag, sequence: $sequence, data: $data) { nextSequence }
}";

/// Its variables.
pub fn write_pty_variables(capsule: &str, tag: &str, sequence: u64, data: &[u8]) -> Value {
    json!({ "capsule": capsule, "tag": tag, "sequence": sequence.to_string(), "data": STANDARD.encode(data) })
}

/// The output of a terminal as an operation.
pub fn pty_output_query() -> String {
    format!(
        "subscription($capsule: ID!, $tag: String!, $after: BigInt) {{
            ptyOutput(capsuleId: $capsule, tag: $tag, after: $after) {{
                {EVENT_FIELDS} ... on PtyResized {{ columns rows }}
            }}
        }}"
    )
}

impl Client {
    /// A terminal that runs `command` as root, of the usual size; the tag names it.
    pub async fn open_pty(&self, capsule: &str, command: &str) -> Result<String> {
        let query = "mutation($input: OpenPtyInput!) { openPty(input: $input) { pty { tag } } }";
        let input = json!({ "capsuleId": capsule, "command": command, "user": "root" });
        let payload: Value = self.get("openPty", query, json!({ "input": input })).await?;
        payload["pty"]["tag"].as_str().map(str::to_owned).context("the tag of a terminal")
    }

    /// What it says, from the byte `after` on; from the oldest that is still held if none.
    pub async fn pty_output(&self, capsule: &str, tag: &str, after: Option<u64>) -> Result<ProcessStream> {
        let after = after.map(|offset| offset.to_string());
        let variables = json!({ "capsule": capsule, "tag": tag, "after": after });
        let subscription = self.subscribe(&pty_output_query(), variables).await?;
        Ok(ProcessStream::new(subscription, "ptyOutput"))
    }

    /// Answers with the offset the next input must carry.
    pub async fn write_pty(&self, capsule: &str, tag: &str, sequence: u64, data: &[u8]) -> Result<u64> {
        let variables = write_pty_variables(capsule, tag, sequence, data);
        let payload: Value = self.get("writePty", WRITE_PTY, variables).await?;
        Ok(payload["nextSequence"].as_str().context("nextSequence")?.parse()?)
    }

    pub async fn resize_pty(&self, capsule: &str, tag: &str, columns: u32, rows: u32) -> Result<Value> {
        let query = "mutation($capsule: ID!, $tag: String!, $columns: Int!, $rows: Int!) {
            resizePty(capsuleId: $capsule, tag: $tag, columns: $columns, rows: $rows) { pty { columns rows } }
        }";
        self.run(query, json!({ "capsule": capsule, "tag": tag, "columns": columns, "rows": rows })).await
    }

    pub async fn close_pty(&self, capsule: &str, tag: &str) -> Result<Value> {
        let query = "mutation($capsule: ID!, $tag: String!) {
            closePty(capsuleId: $capsule, tag: $tag) { pty { tag } }
        }";
        self.run(query, json!({ "capsule": capsule, "tag": tag })).await
    }
}

/// What a terminal has said, with its order checked on the way.
#[derive(Debug, Default)]
pub struct Screen {
    pub bytes: Vec<u8>,
    /// The sizes that it was given.
    pub sizes: Vec<(i64, i64)>,
    pub exit: Option<ProcessEvent>,
}

impl Screen {
    pub fn take(&mut self, event: ProcessEvent) -> Result<()> {
        match event {
            ProcessEvent::Started { .. } => {}
            ProcessEvent::Output { stream, sequence, data } => {
                anyhow::ensure!(stream == "PTY", "a terminal speaks on {stream}");
                anyhow::ensure!(
                    sequence == self.bytes.len() as u64,
                    "output at {sequence} where {} was due",
                    self.bytes.len()
                );
                self.bytes.extend(data);
            }
            ProcessEvent::Resized { columns, rows } => self.sizes.push((columns, rows)),
            gap @ ProcessEvent::Gap { .. } => bail!("{gap:?} of a terminal that is read all the time"),
            exited @ ProcessEvent::Exited { .. } => self.exit = Some(exited),
        }
        Ok(())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}
