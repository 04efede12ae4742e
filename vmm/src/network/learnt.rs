//! The set of addresses that a guest may reach because it looked up an allowed name.
//!
//! Addresses come with every answer of a name server, so they are put in by the kernel's own messages; a packet
//! filter program for each would cost a hundred times as much.

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto};

use super::{
    nfnetlink::{HEADER, NFTABLES, attribute, connect, message, nested, text},
    restriction::{HOSTS, MAX_HOSTS, TABLE},
};
use crate::failure::{Doing as _, Failure};

/// The kernel is told to keep an address for so much longer than was asked for, so that it need not be told again with
/// each of a name's many lookups.
const MARGIN: Duration = Duration::from_secs(60);

// Of linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_ELEMENTS: u16 = NFTABLES << 8 | 12;
const DELETE_ELEMENTS: u16 = NFTABLES << 8 | 14;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const DATA_VALUE: u16 = 1;

/// Belongs to the namespace in which it was opened.
#[derive(Debug)]
pub struct LearntAddresses {
    socket: OwnedFd,
    sequence: u32,
    /// Until when the kernel keeps each.
    kept: HashMap<Ipv4Addr, Instant>,
}

impl LearntAddresses {
    /// For the set of the thread's namespace; what is in it stays.
    pub fn open() -> Result<Self, Failure> {
        let socket = connect().doing(|| "opening a netlink socket")?;
        Ok(Self { socket, sequence: 0, kept: HashMap::new() })
    }

    /// The guest may reach these, each for as long as is said at least.
    pub fn add(&mut self, addresses: &[(Ipv4Addr, Duration)]) -> Result<(), Failure> {
        let now = Instant::now();
        self.kept.retain(|_, until| *until > now);
        let mut missing = Vec::new();
        for (address, time) in addresses {
            if self.kept.get(address).is_none_or(|until| *until < now + *time) {
                missing.push((*address, *time + MARGIN));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let doing = || "letting a guest reach an address";
        let more = missing.iter().filter(|(address, _)| !self.kept.contains_key(address)).count();
        if self.kept.len() + more > MAX_HOSTS {
            let full = format!("it has looked up {MAX_HOSTS} addresses that are still valid");
            return Err(io::Error::other(full)).doing(doing);
        }
        self.send(&missing).doing(doing)?;
        self.kept.extend(missing.into_iter().map(|(address, time)| (address, now + time)));
        Ok(())
    }

    fn send(&mut self, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let elements = |with_time: bool| {
            nested(LIST_ELEMENTS, |list| {
                for (address, time) in addresses {
                    list.extend(element(*address, with_time.then_some(*time)));
                }
            })
        };
        let mut batch = message(BATCH_BEGIN, 0, self.sequence, NFTABLES, &[]);
        // An element that is there already keeps its time. So it is put in, which is no error if it is there, then
        // taken out and put in again; all at once, as far as packets can see.
        let create = libc::NLM_F_CREATE;
        for (kind, flags, elements) in [
            (NEW_ELEMENTS, create, elements(true)),
            (DELETE_ELEMENTS, 0, elements(false)),
            (NEW_ELEMENTS, create | libc::NLM_F_ACK, elements(true)),
        ] {
            let body = [text(LIST_TABLE, TABLE), text(LIST_SET, HOSTS), elements].concat();
            batch.extend(message(kind, flags, self.sequence, 0, &body));
        }
        batch.extend(message(BATCH_END, 0, self.sequence, NFTABLES, &[]));
        sendto(self.socket.as_raw_fd(), &batch, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        self.wait()
    }

    /// The first answer tells: either the first error, or that all is done.
    fn wait(&self) -> io::Result<()> {
        let mut answer = [0; 4096];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            let number = |at: usize| {
                let bytes = answer[..length].get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                bytes.map(u32::from_ne_bytes).ok_or(io::ErrorKind::InvalidData)
            };
            // Further errors of a batch that failed may come later.
            if number(8)? == self.sequence {
                return match number(HEADER)?.cast_signed() {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(-code)),
                };
            }
        }
    }
}

fn element(address: Ipv4Addr, time: Option<Duration>) -> Vec<u8> {
    nested(ELEMENT, |element| {
        element.extend(nested(ELEMENT_KEY, |key| key.extend(attribute(DATA_VALUE, &address.octets()))));
        if let Some(time) = time {
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            element.extend(attribute(ELEMENT_TIMEOUT, &milliseconds.to_be_bytes()));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nftables::{
        helper::get_current_ruleset,
        schema::{NfListObject, NfObject},
    };
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::network::{EgressPolicy, restriction, rules, tap};

    /// Addresses in the set of the thread's namespace, and for how long the kernel was told to keep them.
    fn kept() -> Vec<(String, u32)> {
        let mut kept = Vec::new();
        for object in get_current_ruleset().unwrap().objects.iter() {
            let NfObject::ListObject(NfListObject::Set(set)) = object else { continue };
            for element in set.elem.iter().flat_map(|elements| elements.iter()) {
                let text = serde_json::to_value(element).unwrap();
                let value = text["elem"]["val"].as_str().unwrap().to_owned();
                kept.push((value, text["elem"]["timeout"].as_u64().unwrap() as u32));
            }
        }
        kept.sort();
        kept
    }

    fn in_own_namespace(work: impl FnOnce() + Send) {
        assert!(nix::unistd::geteuid().is_root(), "packet filters need root");
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tap::create("tap0").unwrap();
            work();
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }

    #[test]
    fn addresses_are_kept_for_as_long_as_was_asked_for_last() {
        in_own_namespace(|| {
            let policy = EgressPolicy::new(true, &["*.example.com"], &[] as &[&str]).unwrap();
            rules::apply(&restriction::policy_rules(&policy, &[])).unwrap();
            let mut learnt = LearntAddresses::open().unwrap();
            let address = |last| Ipv4Addr::new(203, 0, 113, last);
            let seconds = Duration::from_secs;
            learnt.add(&[(address(1), seconds(60)), (address(2), seconds(600))]).unwrap();
            assert_eq!(kept(), [("203.0.113.1".into(), 120), ("203.0.113.2".into(), 660)]);
            // The first is kept long enough, the second is not; after a restart nothing is known.
            learnt.add(&[(address(1), seconds(90)), (address(2), seconds(700))]).unwrap();
            assert_eq!(kept(), [("203.0.113.1".into(), 120), ("203.0.113.2".into(), 760)]);
            LearntAddresses::open().unwrap().add(&[(address(1), seconds(10))]).unwrap();
            assert_eq!(kept()[0], ("203.0.113.1".into(), 70));

            // The same policy again, as after a restart, keeps them; without it there is nothing to put them into.
            rules::apply(&restriction::policy_rules(&policy, &[])).unwrap();
            assert_eq!(kept().len(), 2);
            rules::apply(&restriction::no_policy_rules()).unwrap();
            for _ in 0..2 {
                let error = learnt.add(&[(address(3), seconds(60))]).unwrap_err();
                assert_eq!(error.source.kind(), io::ErrorKind::NotFound, "{error:?}");
            }
            rules::apply(&restriction::policy_rules(&policy, &[])).unwrap();
            learnt.add(&[(address(3), seconds(60))]).unwrap();
            assert_eq!(kept(), [("203.0.113.3".into(), 120)]);
        });
    }

    #[test]
    fn a_guest_has_so_many_addresses_and_no_more() {
        in_own_namespace(|| {
            let policy = EgressPolicy::new(true, &["*.example.com"], &[] as &[&str]).unwrap();
            rules::apply(&restriction::policy_rules(&policy, &[])).unwrap();
            let mut learnt = LearntAddresses::open().unwrap();
            let address = |number: usize| Ipv4Addr::from_bits(0x0101_0000 + number as u32);
            for chunk in (0..MAX_HOSTS).collect::<Vec<_>>().chunks(64) {
                let chunk: Vec<_> =
                    chunk.iter().map(|number| (address(*number), Duration::from_secs(60))).collect();
                learnt.add(&chunk).unwrap();
            }
            assert_eq!(kept().len(), MAX_HOSTS);
            learnt.add(&[(address(0), Duration::from_secs(60))]).unwrap();
            assert!(learnt.add(&[(address(MAX_HOSTS), Duration::from_secs(60))]).is_err());
        });
    }
}
