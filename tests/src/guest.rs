//! The guest daemon called directly, without control plane and agent: the baseline of the benchmark.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use wrenn_proto::envd::v1::processes_client::ProcessesClient;
use wrenn_proto::envd::v1::selector::By;
use wrenn_proto::envd::v1::{
    FollowRequest, ProcessEvent, PtySize, Selector, StartRequest, WriteInputRequest, process_event,
};
use wrenn_proto::{CONNECTION_WINDOW, ENVD_PORT, STREAM_WINDOW, TOKEN};

use crate::stack::CapsuleRecord;

/// An open channel into a running capsule.
pub struct Guest {
    processes: ProcessesClient<Channel>,
    token: MetadataValue<Ascii>,
}

/// How a process ended, and what it wrote to its standard output.
#[derive(Debug)]
pub struct Ended {
    pub exit_code: Option<i32>,
    pub stdout: Vec<u8>,
}

impl Ended {
    /// Follows a process to its end.
    pub(crate) async fn read(mut events: Streaming<ProcessEvent>) -> Result<Self> {
        let mut stdout = Vec::new();
        while let Some(event) = events.message().await.context("following a process")? {
            match event.event {
                Some(process_event::Event::Output(output)) => stdout.extend_from_slice(&output.data),
                Some(process_event::Event::Exited(exited)) => {
                    return Ok(Self { exit_code: exited.exit_code, stdout });
                }
                _ => {}
            }
        }
        bail!("the stream ended without an exit")
    }
}

impl Guest {
    /// Connects as the agent does: same transport, same settings, the capsule's own token.
    pub async fn connect(record: &Path) -> Result<Self> {
        let record = CapsuleRecord::read(record)?;
        let endpoint = Endpoint::from_shared(format!("http://{}:{ENVD_PORT}", record.guest_address()))?
            .connect_timeout(Duration::from_secs(5))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.context("connecting to the guest daemon")?;
        let token = record.token.parse().context("the capsule's token is not metadata")?;
        Ok(Self { processes: ProcessesClient::new(channel), token })
    }

    /// Runs a program to its end.
    pub async fn exec(&mut self, argv: &[&str]) -> Result<Ended> {
        let argv = argv.iter().map(|&argument| argument.to_owned()).collect();
        let mut request = Request::new(StartRequest { argv, close_stdin: true, ..StartRequest::default() });
        request.metadata_mut().insert(TOKEN, self.token.clone());
        let events = self.processes.exec(request).await.context("starting a process")?.into_inner();
        Ended::read(events).await
    }

    /// A terminal that runs a shell line, followed from its beginning.
    pub async fn open_pty(&mut self, command: &str) -> Result<GuestPty> {
        let argv = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let pty = Some(PtySize { columns: 80, rows: 24 });
        let mut request = Request::new(StartRequest { argv, pty, ..StartRequest::default() });
        request.metadata_mut().insert(TOKEN, self.token.clone());
        let started = self.processes.start(request).await.context("starting a terminal")?.into_inner();
        let pid = started.process.context("the guest named no process")?.pid;
        let selector = Selector { by: Some(By::Pid(pid)) };
        let mut request = Request::new(FollowRequest { selector: Some(selector.clone()), after: None });
        request.metadata_mut().insert(TOKEN, self.token.clone());
        let events = self.processes.follow(request).await.context("following a terminal")?.into_inner();
        let (processes, token) = (self.processes.clone(), self.token.clone());
        Ok(GuestPty { processes, token, selector, events, sequence: 0 })
    }
}

/// A terminal in the guest, without anything between.
pub struct GuestPty {
    processes: ProcessesClient<Channel>,
    token: MetadataValue<Ascii>,
    selector: Selector,
    events: Streaming<ProcessEvent>,
    sequence: u64,
}

impl GuestPty {
    /// Reads until so many bytes have come.
    pub async fn read(&mut self, mut bytes: usize) -> Result<()> {
        while bytes > 0 {
            let event = self.events.message().await.context("following a terminal")?;
            if let Some(process_event::Event::Output(output)) = event.context("the terminal ended")?.event {
                bytes = bytes.saturating_sub(output.data.len());
            }
        }
        Ok(())
    }

    /// Types, and waits until all of it has come back.
    pub async fn echo(&mut self, data: &'static [u8]) -> Result<()> {
        let (selector, sequence) = (Some(self.selector.clone()), self.sequence);
        let mut request = Request::new(WriteInputRequest { selector, sequence, data: data.into() });
        request.metadata_mut().insert(TOKEN, self.token.clone());
        self.sequence += data.len() as u64;
        let mut processes = self.processes.clone();
        let (written, read) = tokio::join!(processes.write_input(request), self.read(data.len()));
        written.context("typing")?;
        read
    }
}
