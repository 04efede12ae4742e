//! Runs a shell line through a daemon: `exec ADDRESS LINE [TIMES]`. Repeated, it prints how long each
//! round trip took from the call to the exit, in microseconds, in order of size.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, bail};
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::guest_client::GuestClient;
use wrenn_proto::envd::v1::process_event::Event;
use wrenn_proto::envd::v1::processes_client::ProcessesClient;

const TOKEN: [u8; 16] = [0xab; 16];

fn with_token<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = AsciiMetadataValue::from_static("abababababababababababababababab");
    request.metadata_mut().insert(wrenn_proto::TOKEN, value);
    request
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (address, line, times) = match arguments.as_slice() {
        [address, line] => (address, line, 1),
        [address, line, times] => (address, line, times.parse::<usize>().context("TIMES")?),
        _ => bail!("usage: exec ADDRESS LINE [TIMES]"),
    };
    let channel = tonic::transport::Endpoint::new(format!("http://{address}"))?
        .initial_stream_window_size(wrenn_proto::STREAM_WINDOW)
        .initial_connection_window_size(wrenn_proto::CONNECTION_WINDOW)
        .connect()
        .await
        .with_context(|| format!("nobody answers at {address}"))?;
    let configuration =
        pb::ConfigureRequest { token: bytes::Bytes::from_static(&TOKEN), ..Default::default() };
    GuestClient::new(channel.clone()).configure(with_token(configuration)).await?;

    let mut processes = ProcessesClient::new(channel);
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()];
        let request = pb::StartRequest { argv, close_stdin: true, ..Default::default() };
        let started = Instant::now();
        let mut events = processes.exec(with_token(request)).await?.into_inner();
        while let Some(event) = events.message().await? {
            match event.event {
                Some(Event::Output(output)) if output.stream() == pb::OutputStream::Stderr => {
                    std::io::stderr().write_all(&output.data)?;
                }
                Some(Event::Output(output)) => std::io::stdout().write_all(&output.data)?,
                Some(Event::Exited(exited)) if times == 1 => eprintln!("{exited:?}"),
                _ => {}
            }
        }
        took.push(started.elapsed().as_micros());
    }
    if times > 1 {
        took.sort_unstable();
        eprintln!("{took:?}");
    }
    Ok(())
}
