//! What the played guest does for a command line.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use wrenn_proto::{
    CAUSE,
    envd::v1::{self as envd, process_event},
};

pub fn process() -> envd::Process {
    envd::Process {
        pid: 7,
        tag: "proc-0000abcd".into(),
        command: "sleep 1".into(),
        user: "root".into(),
        started_at_ns: 1,
        running: true,
        ..Default::default()
    }
}

pub fn output(stream: envd::OutputStream, sequence: u64, data: Vec<u8>) -> envd::ProcessEvent {
    let output = envd::ProcessOutput { stream: stream.into(), sequence, data: data.into() };
    envd::ProcessEvent { event: Some(process_event::Event::Output(output)) }
}

pub fn exited(exit_code: Option<i32>, cause: Option<envd::Cause>) -> envd::ProcessEvent {
    let exited = envd::ProcessExited { exit_code, signal: None, cause };
    envd::ProcessEvent { event: Some(process_event::Event::Exited(exited)) }
}

pub type Events = ReceiverStream<Result<envd::ProcessEvent, Status>>;

/// Runs one.
pub fn play(line: String, stdin: Vec<u8>) -> Events {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let started = envd::ProcessStarted { pid: 7, tag: "proc-0000abcd".into() };
        let started = envd::ProcessEvent { event: Some(process_event::Event::Started(started)) };
        if sender.send(Ok(started)).await.is_err() {
            return;
        }
        let mut events: Vec<Result<envd::ProcessEvent, Status>> = Vec::new();
        match line.as_str() {
            "cat" => {
                events.push(Ok(output(envd::OutputStream::Stdout, 0, stdin)));
                events.push(Ok(output(envd::OutputStream::Stderr, 0, b"done".to_vec())));
                events.push(Ok(exited(Some(3), None)));
            }
            "binary" => {
                events.push(Ok(output(envd::OutputStream::Stdout, 0, vec![0xff, 0x00])));
                events.push(Ok(exited(Some(0), None)));
            }
            "flood" => {
                for chunk in 0..320u64 {
                    events.push(Ok(output(envd::OutputStream::Stdout, chunk * 65_536, vec![b'x'; 65_536])));
                }
                events.push(Ok(exited(Some(0), None)));
            }
            "be paused" => {
                let mut status = Status::unavailable("the capsule was paused");
                status.metadata_mut().insert(CAUSE, "CAPSULE_PAUSED".parse().expect("a value"));
                events.push(Err(status));
            }
            "be lost" => {
                let cause = envd::Cause { code: "VMM_DIED".into(), message: "the VMM died".into() };
                events.push(Ok(exited(None, Some(cause))));
            }
            "hang" => sender.closed().await,
            _ => events.push(Ok(exited(Some(0), None))),
        }
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
