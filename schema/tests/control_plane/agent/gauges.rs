//! Ports and metrics of the played guests.

use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use wrenn_proto::{
    agent::v1 as agent,
    envd::v1::{self as envd, port_event},
};

pub type PortEvents = ReceiverStream<Result<envd::PortEvent, Status>>;
pub type Points = ReceiverStream<Result<agent::MetricPoint, Status>>;

pub fn port(number: u32) -> envd::Port {
    envd::Port { number, process: Some("node".into()), since_ns: 1_700_000_000_000_000_000 }
}

/// Every open port, `synced`, then what the test makes happen.
pub fn watch_ports(open: Vec<envd::Port>, mut changes: broadcast::Receiver<port_event::Event>) -> PortEvents {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let event = |event| Ok(envd::PortEvent { event: Some(event) });
        for port in open {
            if sender.send(event(port_event::Event::Opened(port))).await.is_err() {
                return;
            }
        }
        let mut next = port_event::Event::Synced(envd::PortsSynced {});
        while sender.send(event(next)).await.is_ok() {
            next = tokio::select! {
                change = changes.recv() => match change { Ok(change) => change, Err(_) => return },
                () = sender.closed() => return,
            };
        }
    });
    ReceiverStream::new(receiver)
}

/// The point of this second of the epoch.
pub fn point(second: i64) -> agent::MetricPoint {
    agent::MetricPoint {
        at_ns: second * 1_000_000_000,
        cpu_percent: 150.5,
        memory_bytes: 1 << 33,
        disk_bytes: 4096,
    }
}

/// Points of the seconds 3, 4 and 5, of which 3 is known from before; then the capsule is paused.
pub fn watch_metrics() -> Points {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        for second in 3..=5 {
            if sender.send(Ok(point(second))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
