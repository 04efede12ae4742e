//! Processes in capsules: running them to their end, in the background, with their output live.

mod exec;
mod held;
mod input;
mod list;
mod mutation;
mod new_capsule;
mod pty;
mod subscription;

use async_graphql::{Enum, SimpleObject, Union};
use chrono::{DateTime, Utc};
use wrenn_entities::time;
use wrenn_proto::envd::v1 as envd;

pub use self::{
    exec::Encoding,
    held::HeldOutput,
    input::{EnvVarInput, ExecInput},
    mutation::ProcessMutation,
    new_capsule::NewCapsuleMutation,
    pty::PtyMutation,
    subscription::ProcessSubscription,
};
pub(crate) use self::{held::HeldOutputs, list::lists};
use crate::{
    capsule::CapsuleCause,
    scalar::{Base64, BigInt},
};

/// A process in a capsule, living or lately exited.
#[derive(SimpleObject, Clone, Debug)]
pub struct Process {
    pid: i32,
    tag: String,
    /// As given: the shell line, or the arguments joined by blanks.
    command: String,
    user: String,
    cwd: Option<String>,
    started_at: DateTime<Utc>,
    pty: bool,
    running: bool,
    exit_code: Option<i32>,
    signal: Option<String>,
    /// Of its terminal.
    #[graphql(skip)]
    size: Option<PtyResized>,
}

/// Pids stay below 2^22.
fn pid(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(i32::MAX)
}

impl From<envd::Process> for Process {
    fn from(process: envd::Process) -> Self {
        let side = |cells: u32| i32::try_from(cells).unwrap_or(i32::MAX);
        Self {
            pid: pid(process.pid),
            tag: process.tag,
            command: process.command,
            user: process.user,
            cwd: Some(process.cwd).filter(|cwd| !cwd.is_empty()),
            started_at: time::from_nanos(process.started_at_ns).unwrap_or_default(),
            pty: process.pty,
            running: process.running,
            exit_code: process.exit_code,
            signal: process.signal,
            size: process.size.map(|size| PtyResized { columns: side(size.columns), rows: side(size.rows) }),
        }
    }
}

/// What happens to a process, in order.
#[derive(Union)]
pub enum ProcessEvent {
    Started(ProcessStarted),
    Output(ProcessOutput),
    Gap(ProcessGap),
    Resized(PtyResized),
    Exited(ProcessExited),
}

#[derive(SimpleObject)]
pub struct ProcessStarted {
    pid: i32,
    tag: String,
}

/// `sequence` is the offset in bytes of `data` in its stream.
#[derive(SimpleObject)]
pub struct ProcessOutput {
    stream: OutputStream,
    sequence: BigInt,
    data: Base64,
}

/// Bytes from `from` up to `to` were produced but are no longer held.
#[derive(SimpleObject)]
pub struct ProcessGap {
    stream: OutputStream,
    from: BigInt,
    to: BigInt,
}

/// Somebody gave the terminal another size: of those who watch it, only one can say how large it is.
#[derive(SimpleObject, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtyResized {
    columns: i32,
    rows: i32,
}

/// The last event. Either the process exited (`exitCode` or `signal`), or its capsule was lost (`cause`).
#[derive(SimpleObject)]
pub struct ProcessExited {
    exit_code: Option<i32>,
    signal: Option<String>,
    cause: Option<CapsuleCause>,
}

#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
    Pty,
}

impl From<envd::OutputStream> for OutputStream {
    fn from(stream: envd::OutputStream) -> Self {
        match stream {
            envd::OutputStream::Stderr => Self::Stderr,
            envd::OutputStream::Pty => Self::Pty,
            envd::OutputStream::Stdout | envd::OutputStream::Unspecified => Self::Stdout,
        }
    }
}

impl ProcessEvent {
    /// `None`: an event of a kind that this version does not know.
    fn from_wire(event: envd::ProcessEvent) -> Option<Self> {
        use envd::process_event::Event;
        Some(match event.event? {
            Event::Started(started) => {
                Self::Started(ProcessStarted { pid: pid(started.pid), tag: started.tag })
            }
            Event::Output(output) => Self::Output(ProcessOutput {
                stream: output.stream().into(),
                sequence: BigInt(output.sequence),
                data: Base64(output.data),
            }),
            Event::Gap(gap) => Self::Gap(ProcessGap {
                stream: gap.stream().into(),
                from: BigInt(gap.from),
                to: BigInt(gap.to),
            }),
            Event::Exited(exited) => Self::Exited(ProcessExited {
                exit_code: exited.exit_code,
                signal: exited.signal,
                cause: exited.cause.map(|cause| CapsuleCause { code: cause.code, message: cause.message }),
            }),
        })
    }

    fn is_last(&self) -> bool {
        matches!(self, Self::Exited(_))
    }
}
