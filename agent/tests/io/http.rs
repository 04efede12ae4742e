//! The control plane's side of the proxy: HTTP/1.1 as it is on the wire, so that nothing is smoothed over.

use std::net::SocketAddr;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wrenn_agent::Agent;
use wrenn_agent::proxy::{CAPSULE, ERROR, PORT};

use crate::support::calls::soon;
use crate::support::{CONTROL_PLANE, Site};

/// The proxy of an agent.
pub struct Proxy {
    connector: TlsConnector,
    address: SocketAddr,
}

/// One connection to it.
pub struct Connection(TlsStream<TcpStream>);

/// An answer, as far as it was read.
pub struct Answer {
    pub status: u16,
    head: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Proxy {
    pub fn of(site: &Site, agent: &Agent) -> Self {
        let identity = site.authority.issue(CONTROL_PLANE, ExtendedKeyUsagePurpose::ClientAuth);
        Self { connector: site.authority.tls(&identity, b"http/1.1"), address: agent.address() }
    }

    pub async fn connect(&self) -> Connection {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        Connection(self.connector.connect(name, socket).await.unwrap())
    }
}

impl Connection {
    pub async fn get(&mut self, capsule: &str, port: u16, path: &str) -> Answer {
        self.send(capsule, port, "GET", path, &[], b"").await;
        self.answer().await
    }

    pub async fn post(&mut self, capsule: &str, port: u16, path: &str, body: &[u8]) -> Answer {
        self.send(capsule, port, "POST", path, &[], body).await;
        self.answer().await
    }

    pub async fn send(
        &mut self,
        capsule: &str,
        port: u16,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: guest\r\n{CAPSULE}: {capsule}\r\n{PORT}: {port}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.write(head.as_bytes()).await;
        self.write(body).await;
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        soon("a request is taken", async {
            self.0.write_all(bytes).await.unwrap();
            self.0.flush().await.unwrap();
        })
        .await;
    }

    /// Status and headers, with what came of the body by then.
    pub async fn head(&mut self) -> Answer {
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let body = bytes.split_off(end + 4);
                let head = String::from_utf8(bytes).unwrap();
                let mut lines = head.lines();
                let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
                let pairs = lines.filter_map(|line| line.split_once(": "));
                let head = pairs.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
                return Answer { status, head, body };
            }
            self.more(&mut bytes).await;
        }
    }

    /// A whole answer of a known length.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        let length: usize = answer.header("content-length").expect("a length").parse().unwrap();
        while answer.body.len() < length {
            self.more(&mut answer.body).await;
        }
        answer
    }

    /// Some more bytes, at least one.
    pub async fn more(&mut self, bytes: &mut Vec<u8>) {
        let read = soon("more of an answer", self.0.read_buf(bytes)).await.unwrap();
        assert!(read > 0, "it was closed after {:?}", String::from_utf8_lossy(bytes));
    }

    /// Reads on until the other side ends it, however it does that.
    pub async fn until_closed(mut self) {
        let mut rest = Vec::new();
        while let Ok(1..) = soon("the end of a connection", self.0.read_buf(&mut rest)).await {
            rest.clear();
        }
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Why this is not the guest's answer, if it is not.
    pub fn error(&self) -> Option<&str> {
        self.header(ERROR)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
