//! QEMU's monitor: one JSON object a line over a Unix socket. Only what the driver needs of it.

use std::{io, path::Path, time::Duration};

use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

/// Far more than any answer to what is asked here; a VMM gone mad must not fill this process.
const LONGEST_LINE: usize = 1 << 20;
/// For commands that only flip something.
const PROMPT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU's monitor socket")]
    Io(#[from] io::Error),
    #[error("QEMU closed its monitor")]
    Closed,
    #[error("QEMU's monitor said something that is none of its protocol: {0:?}")]
    Garbage(String),
    #[error("QEMU refused {command}: {class}: {description}")]
    Refused { command: &'static str, class: String, description: String },
    #[error("QEMU did not answer {command} in {after:?}")]
    Deadline { command: &'static str, after: Duration },
}

/// What a line from QEMU can be.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: Value,
    },
    Event {
        event: String,
    },
    Return {
        #[serde(rename = "return")]
        value: Value,
        id: u64,
    },
    Error {
        error: ErrorBody,
        id: u64,
    },
}

#[derive(Debug, PartialEq, Deserialize)]
struct ErrorBody {
    class: String,
    desc: String,
}

/// What QEMU calls the state of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    Running,
    /// A write to the disk found no room on the host. QEMU has stopped the vCPUs, and tries it again when they go on.
    IoError,
    #[serde(other)]
    Other,
}

#[derive(Clone, Copy, Debug)]
enum Vcpus {
    Running,
    Stopped(Instant),
}

/// A connection that is ready for commands.
#[derive(Debug)]
pub struct Qmp {
    write: OwnedWriteHalf,
    answers: mpsc::Receiver<Result<Message, QmpError>>,
    /// What the last event about them said; `None` before the first.
    vcpus: watch::Receiver<Option<Vcpus>>,
    next_id: u64,
    reader: JoinHandle<()>,
}

impl Qmp {
    /// Waits for QEMU to greet as long as it takes: the caller watches the process and the clock.
    pub async fn connect(socket: &Path) -> Result<Self, QmpError> {
        let (read, write) = UnixStream::connect(socket).await?.into_split();
        let (send_answer, answers) = mpsc::channel(8);
        let (send_vcpus, vcpus) = watch::channel(None);
        let reader = tokio::spawn(read_all(read, send_answer, send_vcpus));
        let mut qmp = Self { write, answers, vcpus, next_id: 0, reader };
        match qmp.answer().await? {
            Message::Greeting { .. } => {}
            other => return Err(QmpError::Garbage(format!("{other:?}"))),
        }
        qmp.execute("qmp_capabilities", json!({}), PROMPT).await?;
        Ok(qmp)
    }

    pub async fn stop(&mut self) -> Result<(), QmpError> {
        self.execute("stop", json!({}), PROMPT).await.map(drop)
    }

    pub async fn resume(&mut self) -> Result<(), QmpError> {
        self.execute("cont", json!({}), PROMPT).await.map(drop)
    }

    /// Writes the state of all devices, without the memory, to a file that QEMU can open.
    pub async fn save_devices(&mut self, file: &str) -> Result<(), QmpError> {
        // `live` would leave QEMU in a state in which the next save aborts it.
        let arguments = json!({ "filename": file, "live": false });
        self.execute("xen-save-devices-state", arguments, PROMPT).await.map(drop)
    }

    /// What a ring-buffer character device holds, and empties it.
    pub async fn read_ring(&mut self, device: &str, size: usize) -> Result<String, QmpError> {
        let arguments = json!({ "device": device, "size": size });
        match self.execute("ringbuf-read", arguments, PROMPT).await? {
            Value::String(text) => Ok(text),
            other => Err(QmpError::Garbage(other.to_string())),
        }
    }

    pub async fn status(&mut self) -> Result<RunState, QmpError> {
        let status = self.execute("query-status", json!({}), PROMPT).await?;
        let state = status.get("status").map(RunState::deserialize);
        match state {
            Some(Ok(state)) => Ok(state),
            _ => Err(QmpError::Garbage(status.to_string())),
        }
    }

    /// Waits until the vCPUs of a machine that is being started run, or have run: a restored one may stand still again at
    /// once, if a write that it was saved with still finds no room.
    pub async fn until_running(&mut self) -> Result<(), QmpError> {
        if matches!(self.status().await?, RunState::Running | RunState::IoError) {
            return Ok(());
        }
        // Only an event can tell from here on; one that came before the question is remembered.
        let has_run = self.vcpus.wait_for(Option::is_some).await.is_ok();
        if has_run { Ok(()) } else { Err(self.end().await) }
    }

    /// Waits until the vCPUs have stopped, whatever for, and answers when they did. Nothing is lost by giving up waiting.
    pub async fn until_stopped(&mut self) -> Result<Instant, QmpError> {
        loop {
            if let Some(Vcpus::Stopped(at)) = *self.vcpus.borrow_and_update() {
                return Ok(at);
            }
            self.vcpus.changed().await.map_err(|_| QmpError::Closed)?;
        }
    }

    async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
        after: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let exchange = async {
            self.write.write_all(line.as_bytes()).await?;
            loop {
                match self.answer().await? {
                    Message::Return { value, id: of } if of == id => return Ok(value),
                    Message::Error { error, id: of } if of == id => {
                        return Err(QmpError::Refused {
                            command,
                            class: error.class,
                            description: error.desc,
                        });
                    }
                    // To a command whose deadline passed.
                    Message::Return { .. } | Message::Error { .. } => {}
                    other => return Err(QmpError::Garbage(format!("{other:?}"))),
                }
            }
        };
        timeout(after, exchange).await.unwrap_or(Err(QmpError::Deadline { command, after }))
    }

    async fn answer(&mut self) -> Result<Message, QmpError> {
        self.answers.recv().await.unwrap_or(Err(QmpError::Closed))
    }

    /// Why the reader ended.
    async fn end(&mut self) -> QmpError {
        loop {
            if let Err(error) = self.answer().await {
                return error;
            }
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads all the time, so that events nobody waits for do not pile up in QEMU. Ends with an error as the
/// last answer.
async fn read_all(
    read: OwnedReadHalf,
    answers: mpsc::Sender<Result<Message, QmpError>>,
    vcpus: watch::Sender<Option<Vcpus>>,
) {
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(LONGEST_LINE));
    loop {
        let message = match lines.next().await {
            Some(Ok(line)) => serde_json::from_str(&line).map_err(|_| QmpError::Garbage(excerpt(&line))),
            Some(Err(LinesCodecError::Io(error))) => Err(error.into()),
            Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                Err(QmpError::Garbage("a line without end".to_owned()))
            }
            None => Err(QmpError::Closed),
        };
        if let Ok(Message::Event { event }) = &message {
            match event.as_str() {
                "RESUME" => vcpus.send_replace(Some(Vcpus::Running)),
                "STOP" => vcpus.send_replace(Some(Vcpus::Stopped(Instant::now()))),
                _ => continue,
            };
            continue;
        }
        let last = message.is_err();
        if answers.send(message).await.is_err() || last {
            return;
        }
    }
}

fn excerpt(line: &str) -> String {
    line.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncBufReadExt as _, BufReader},
        net::UnixListener,
    };

    use super::*;

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}"#;

    /// A QEMU that greets, agrees to the negotiation, then answers each line by the script.
    async fn fake(script: &'static [&'static str]) -> (tempfile::TempDir, Result<Qmp, QmpError>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut commands = BufReader::new(read).lines();
            write.write_all(GREETING.as_bytes()).await.unwrap();
            write.write_all(b"\r\n{\"return\": {}, \"id\": 0}\r\n").await.unwrap();
            commands.next_line().await.unwrap();
            for answer in script {
                if commands.next_line().await.unwrap().is_none() {
                    return;
                }
                write.write_all(answer.as_bytes()).await.unwrap();
                write.write_all(b"\n").await.unwrap();
            }
        });
        let qmp = Qmp::connect(&socket).await;
        (directory, qmp)
    }

    #[tokio::test]
    async fn answers_find_their_questions_past_events_and_late_answers() {
        let (_directory, qmp) = fake(&[
            "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\n{\"return\": {}, \"id\": 1}",
            "{\"return\": \"late\", \"id\": 77}\n{\"return\": \"login:\", \"id\": 2}",
        ])
        .await;
        let mut qmp = qmp.unwrap();
        qmp.stop().await.unwrap();
        assert_eq!(qmp.read_ring("console", 64).await.unwrap(), "login:");
    }

    #[tokio::test]
    async fn a_refusal_says_which_command_and_why() {
        let (_directory, qmp) =
            fake(&[r#"{"error": {"class": "GenericError", "desc": "no such file"}, "id": 1}"#]).await;
        let error = qmp.unwrap().save_devices("/nowhere").await.unwrap_err();
        let expected = "QEMU refused xen-save-devices-state: GenericError: no such file";
        assert_eq!(error.to_string(), expected);
    }

    #[tokio::test]
    async fn a_restored_machine_is_waited_for() {
        let (_directory, qmp) =
            fake(&["{\"return\": {\"status\": \"inmigrate\"}, \"id\": 1}\n{\"event\": \"RESUME\"}"]).await;
        qmp.unwrap().until_running().await.unwrap();
    }

    #[tokio::test]
    async fn a_restored_machine_that_stops_at_once_has_run() {
        let events = "{\"return\": {\"status\": \"inmigrate\"}, \"id\": 1}\n{\"event\": \"RESUME\"}\n{\"event\": \"STOP\"}";
        let (_directory, qmp) = fake(Box::leak(Box::new([events]))).await;
        let mut qmp = qmp.unwrap();
        qmp.until_running().await.unwrap();
        qmp.until_stopped().await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_qemu_ends_every_wait() {
        let (_directory, qmp) = fake(&[r#"{"return": {"status": "inmigrate"}, "id": 1}"#]).await;
        let mut qmp = qmp.unwrap();
        assert!(matches!(qmp.until_running().await, Err(QmpError::Closed | QmpError::Io(_))));
        assert!(matches!(qmp.until_stopped().await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn garbage_is_an_error_not_a_hang() {
        let endless: &'static str = Box::leak("x".repeat(LONGEST_LINE + 10).into_boxed_str());
        for garbage in ["}{", "[]", "{\"return\": {}}", "{\"id\": 1}", "\u{0}", endless] {
            let script: &'static [&'static str] = Box::leak(Box::new([garbage]));
            let (_directory, qmp) = fake(script).await;
            let error = qmp.unwrap().stop().await.unwrap_err();
            assert!(matches!(error, QmpError::Garbage(_)), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in ".{0,200}") {
            let _ = serde_json::from_str::<Message>(&line);
        }
    }
}
