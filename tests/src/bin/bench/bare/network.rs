//! One namespace with one TAP, made with `ip`: all the network a bare machine needs.

use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// What the image's init gives itself, and the host's end of that link.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
const HOST: &str = "169.254.0.22/30";

/// Any address will do; the neighbour entry below must name it.
pub const MAC: &str = "02:00:00:00:00:01";

pub const TAP: &str = "tap0";

/// The same in every namespace: a restored guest goes on with the address that it learnt before, for half a minute.
const TAP_MAC: &str = "02:00:00:00:00:02";

/// A network namespace; dropping it removes it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// `number` tells those of this process apart.
    pub fn create(number: usize) -> Result<Self> {
        let namespace = Self { name: format!("wrenn-bench-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name])?;
        let inside = |arguments: &[&str]| ip(&[&["-n", namespace.name.as_str()], arguments].concat());
        inside(&["tuntap", "add", TAP, "mode", "tap"])?;
        inside(&["address", "add", HOST, "dev", TAP])?;
        inside(&["link", "set", TAP, "address", TAP_MAC, "up"])?;
        // Without it the first packet waits a second for an answer to ARP.
        let guest = GUEST.to_string();
        inside(&["neighbour", "add", &guest, "lladdr", MAC, "dev", TAP, "nud", "permanent"])?;
        Ok(namespace)
    }

    /// Runs `work` on a thread that is in the namespace, and with it every socket and process it makes.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let path = format!("/run/netns/{}", self.name);
                let file = std::fs::File::open(&path).with_context(|| format!("opening {path}"))?;
                setns(file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
                work()
            });
            inside.join().map_err(|_| anyhow!("the thread in the namespace panicked"))?
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("running ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
