//! A machine beyond the host, as far as capsules can tell: a network namespace with two public addresses, where every
//! connection is answered with the address that it was made to, or with what it says.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};

use crate::inventory::Scope;
use crate::stack::{block_number, run};

/// Where it answers.
pub const PORT: u16 = 7;

/// Where it says back what it is told, for as long as the other side likes.
pub const ECHO: u16 = 8;

/// 198.18.0.0/15, kept for measurements (RFC 2544): nobody's on the internet, and no host's own network.
const NETWORK: u32 = u32::from_be_bytes([198, 18, 0, 0]);

/// Addresses of each, and how many of them one stack may have.
const ADDRESSES: u32 = 8;
const PER_STACK: u32 = 16;

/// Counts those of this process: each takes a number among its stack's slots.
static STARTED: AtomicU16 = AtomicU16::new(0);

/// How often the answerer looks whether somebody came, or whether it shall end.
const LOOK: Duration = Duration::from_millis(5);

pub struct Outside {
    namespace: String,
    /// The host's own address on the way there: a public one, and the host's all the same.
    pub host: Ipv4Addr,
    /// Where it is reached.
    pub addresses: [Ipv4Addr; 2],
    over: Arc<AtomicBool>,
    answerer: Option<JoinHandle<()>>,
}

/// Named as everything of a stack's is, so that what is left of it is found.
pub(crate) fn namespace(slot: u16) -> String {
    format!("wrenn-out-{slot}")
}

impl Outside {
    /// The stack's own; dropping it removes it.
    pub fn start(scope: &Scope) -> Result<Self> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed) % u16::try_from(PER_STACK)?;
        let slot = scope.slots.start() + number;
        let block = u32::from(block_number(slot));
        let first = NETWORK + (block * PER_STACK + u32::from(number)) * ADDRESSES;
        let [host, one, two] = [1, 2, 3].map(|last| Ipv4Addr::from(first + last));
        let over = Arc::new(AtomicBool::new(false));
        let mut outside =
            Self { namespace: namespace(slot), host, addresses: [one, two], over, answerer: None };
        outside.connect(slot)?;
        outside.answer()?;
        Ok(outside)
    }

    fn connect(&self, slot: u16) -> Result<()> {
        let (namespace, link) = (self.namespace.as_str(), format!("wrenn-out-{slot}"));
        run("ip", &["netns", "add", namespace])?;
        run("ip", &["link", "add", &link, "type", "veth", "peer", "name", "out0", "netns", namespace])?;
        run("ip", &["address", "add", &format!("{}/29", self.host), "dev", &link])?;
        run("ip", &["link", "set", &link, "up"])?;
        for address in self.addresses {
            run("ip", &["-n", namespace, "address", "add", &format!("{address}/29"), "dev", "out0"])?;
        }
        run("ip", &["-n", namespace, "link", "set", "out0", "up"])
    }

    fn answer(&mut self) -> Result<()> {
        let path = format!("/run/netns/{}", self.namespace);
        let namespace = File::open(&path).with_context(|| format!("opening {path}"))?;
        // A socket belongs to the namespace that its thread was in.
        let listen = move || -> Result<[TcpListener; 2]> {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            let listen = |port| -> Result<TcpListener> {
                let listener =
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening outside")?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            Ok([listen(PORT)?, listen(ECHO)?])
        };
        let listeners =
            thread::spawn(listen).join().map_err(|_| anyhow!("the thread outside panicked"))??;
        let over = Arc::clone(&self.over);
        self.answerer = Some(thread::spawn(move || serve(&listeners, &over)));
        Ok(())
    }
}

fn serve([greeter, echoer]: &[TcpListener; 2], over: &AtomicBool) {
    let mut echoed = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let greeted = greeter.accept().map(|(stream, _)| greet(stream)).is_ok();
        echoed.extend(echoer.accept().ok().and_then(|(stream, _)| prepare(stream).ok()));
        echoed.retain(goes_on);
        if !greeted {
            thread::sleep(LOOK);
        }
    }
}

/// For `goes_on`. Ended without a goodbye, as one to a guest that is gone would keep the namespace for minutes.
fn prepare(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nonblocking(true)?;
    setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(stream)
}

/// Says back what there is; false once the other side has ended the connection.
fn goes_on(mut stream: &TcpStream) -> bool {
    let mut piece = [0; 4096];
    match stream.read(&mut piece) {
        Ok(0) => false,
        Ok(length) => stream.write_all(&piece[..length]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn greet(mut stream: TcpStream) {
    if let Ok(address) = stream.local_addr() {
        // Whoever hung up already has no use for it.
        let _ = stream.write_all(format!("{}\n", address.ip()).as_bytes());
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(answerer) = self.answerer.take() {
            let _ = answerer.join();
        }
        // The link would go with the namespace that one of its ends is in, but not before the kernel gets to that.
        let name = self.namespace.as_str();
        for what in ["link", "netns"] {
            if let Err(error) = run("ip", &[what, "del", name]) {
                eprintln!("{error:#}");
            }
        }
    }
}
