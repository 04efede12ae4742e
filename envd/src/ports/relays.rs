//! Which ports need a relay, and the relays there are.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::ports::proc_net::Listener;
use crate::ports::relay::{MOST_CONNECTIONS, Relay};

/// Relays at one time, each of which costs a descriptor.
const MOST: usize = 128;

/// The relays of one guest, by port.
#[derive(Debug)]
pub struct Relays {
    address: Ipv4Addr,
    places: HashMap<u16, Place>,
    connections: Arc<Semaphore>,
}

/// A port that is relayed, or turned out to need no relay.
#[derive(Debug)]
struct Place {
    target: SocketAddr,
    listeners: Vec<Listener>,
    relay: Option<Relay>,
}

impl Relays {
    /// Relays that listen on `address`.
    pub fn new(address: Ipv4Addr) -> Self {
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        Self { address, places: HashMap::new(), connections }
    }

    /// Whether a listening socket is one of a relay.
    pub fn own(&self, inode: u64) -> bool {
        self.places.values().filter_map(|it| it.relay.as_ref()).any(|it| it.inode == inode)
    }

    /// Takes out what these open ports do not need, to be ended.
    pub fn take_needless(&mut self, open: &BTreeMap<u16, Vec<Listener>>) -> Vec<Relay> {
        let address = self.address;
        let needless = self.places.extract_if(|port, place| {
            let needed = open.get(port).filter(|listeners| {
                target(listeners, address) == Some(place.target)
                    && (place.relay.is_some() || place.listeners == **listeners)
            });
            needed.is_none()
        });
        needless.filter_map(|(_, place)| place.relay).collect()
    }

    /// Starts what they need.
    pub fn start_needed(&mut self, open: &BTreeMap<u16, Vec<Listener>>) {
        for (&port, listeners) in open {
            let Some(target) = target(listeners, self.address) else { continue };
            if self.places.contains_key(&port) || self.places.len() >= MOST {
                continue;
            }
            let relay = match Relay::start(self.address, target, &self.connections) {
                Ok(relay) => Some(relay),
                // It is reached without one; or this machine is no capsule and has no such address.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) =>
                {
                    None
                }
                // What has run out may be there again at the next scan.
                Err(_) => continue,
            };
            self.places.insert(port, Place { target, listeners: listeners.clone(), relay });
        }
    }

    /// Takes all out, to be ended.
    pub fn take_all(&mut self) -> Vec<Relay> {
        self.places.drain().filter_map(|(_, place)| place.relay).collect()
    }
}

/// Where a relay for these listeners of one port would lead; nothing if one of them is reached on `own` without.
fn target(listeners: &[Listener], own: Ipv4Addr) -> Option<SocketAddr> {
    let direct =
        |it: &Listener| it.address == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || it.address == IpAddr::V4(own);
    if listeners.iter().any(direct) {
        return None;
    }
    // Of the loopback addresses the lowest, so that it stays the same: v4 before v6.
    let loopback = listeners.iter().filter(|it| it.address.is_loopback()).min_by_key(|it| it.address);
    if let Some(listener) = loopback {
        return Some((listener.address, listener.port).into());
    }
    // A listener on every v6 address takes v4 as well, unless it was told not to, which the tables do not show: then
    // the relay finds the address free.
    listeners.first().map(|it| (Ipv6Addr::LOCALHOST, it.port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_reached_needs_a_relay() {
        let own = Ipv4Addr::new(169, 254, 0, 21);
        let target = |addresses: &[&str]| {
            let listeners: Vec<_> = addresses
                .iter()
                .map(|it| Listener { address: it.parse().expect("an address"), port: 80, inode: 1 })
                .collect();
            target(&listeners, own).map(|it| it.to_string())
        };
        assert_eq!(target(&["0.0.0.0"]), None);
        assert_eq!(target(&["127.0.0.1", "169.254.0.21"]), None);
        assert_eq!(target(&["127.0.0.1", "0.0.0.0"]), None);
        assert_eq!(target(&["::1", "127.0.0.53", "127.0.0.1"]).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(target(&["::1"]).as_deref(), Some("[::1]:80"));
        assert_eq!(target(&["::"]).as_deref(), Some("[::1]:80"));
    }
}
