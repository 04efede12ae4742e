//! What was found by one scan, and what has changed since another.

use std::collections::{BTreeMap, HashMap};

use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::port_event::Event;

use crate::ports::proc_net::Listener;

/// The open ports by number.
pub type Known = BTreeMap<u16, Open>;

/// A port that is open.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    pub port: pb::Port,
    /// The listening sockets. As long as one of them lives it is the same opening.
    inodes: Vec<u64>,
    /// Differs between two openings of one port.
    opening: u64,
}

/// Whether a port that listens now is the one that was known, and not another program's that came after it.
pub fn goes_on(old: &Known, port: u16, listeners: &[Listener]) -> bool {
    old.get(&port).is_some_and(|it| listeners.iter().any(|now| it.inodes.contains(&now.inode)))
}

/// What is known after a scan; nothing if it is the same as before.
pub fn next(
    old: &Known,
    open: &BTreeMap<u16, Vec<Listener>>,
    names: &HashMap<u64, String>,
    now_ns: i64,
) -> Option<Known> {
    let mut opening = old.values().map(|it| it.opening).max().unwrap_or_default();
    let mut new = Known::new();
    for (&number, listeners) in open {
        let inodes = listeners.iter().map(|it| it.inode).collect();
        let known = old.get(&number).filter(|_| goes_on(old, number, listeners));
        let entry = match known {
            Some(known) => Open { inodes, ..known.clone() },
            None => {
                opening += 1;
                let process = listeners.iter().find_map(|it| names.get(&it.inode)).cloned();
                let port = pb::Port { number: number.into(), process, since_ns: now_ns };
                Open { port, inodes, opening }
            }
        };
        new.insert(number, entry);
    }
    (new != *old).then_some(new)
}

/// What a reader that knows one state must be told to know another: first what was closed, then what was opened.
pub fn difference(old: &Known, new: &Known) -> Vec<Event> {
    let same = |one: &Known, other: &Known, number| {
        let opening = |known: &Known| known.get(number).map(|it| it.opening);
        opening(one) == opening(other)
    };
    let closed = old.keys().filter(|it| !same(old, new, it)).map(|&it| Event::Closed(it.into()));
    let opened =
        new.iter().filter(|(it, _)| !same(old, new, it)).map(|(_, it)| Event::Opened(it.port.clone()));
    closed.chain(opened).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(ports: &[(u16, &[u64])]) -> BTreeMap<u16, Vec<Listener>> {
        let listeners = |port, inodes: &[u64]| {
            let address = std::net::Ipv4Addr::LOCALHOST.into();
            inodes.iter().map(|&inode| Listener { address, port, inode }).collect()
        };
        ports.iter().map(|&(port, inodes)| (port, listeners(port, inodes))).collect()
    }

    fn after(old: &Known, ports: &[(u16, &[u64])]) -> Known {
        next(old, &open(ports), &HashMap::new(), 5).unwrap_or_else(|| old.clone())
    }

    fn told(old: &Known, new: &Known) -> Vec<String> {
        let show = |it| match it {
            Event::Opened(port) => format!("+{}", port.number),
            Event::Closed(number) => format!("-{number}"),
            Event::Synced(_) => "=".to_owned(),
        };
        difference(old, new).into_iter().map(show).collect()
    }

    #[test]
    fn a_port_is_its_sockets() {
        let nothing = Known::new();
        let first = after(&nothing, &[(80, &[1]), (81, &[2])]);
        assert_eq!(told(&nothing, &first), ["+80", "+81"]);
        assert_eq!(next(&first, &open(&[(80, &[1]), (81, &[2])]), &HashMap::new(), 9), None);
        // A second listener beside the first, which then ends: still open.
        let beside = after(&first, &[(80, &[1, 3]), (81, &[2])]);
        let handed_on = after(&beside, &[(80, &[3]), (81, &[2])]);
        assert_eq!(told(&first, &handed_on), [""; 0]);
        // Another socket between two scans.
        let again = after(&handed_on, &[(80, &[4]), (81, &[2])]);
        assert_eq!(told(&handed_on, &again), ["-80", "+80"]);
        assert_eq!(told(&again, &nothing), ["-80", "-81"]);
    }

    proptest! {
        #[test]
        fn a_reader_that_misses_states_ends_with_the_truth(
            states in proptest::collection::vec(proptest::collection::btree_map(1u16..6, 1u64..4, 0..5), 1..8),
            asks in proptest::collection::vec(any::<bool>(), 8),
        ) {
            let (mut known, mut told) = (Known::new(), Known::new());
            let mut view = std::collections::BTreeSet::new();
            let last = states.len() - 1;
            for (index, state) in states.into_iter().enumerate() {
                let rows: Vec<(u16, [u64; 1])> = state.into_iter().map(|(port, inode)| (port, [inode])).collect();
                let rows: Vec<(u16, &[u64])> = rows.iter().map(|(port, inode)| (*port, inode.as_slice())).collect();
                known = after(&known, &rows);
                if asks[index] || index == last {
                    for event in difference(&told, &known) {
                        match event {
                            Event::Opened(port) => prop_assert!(view.insert(port.number), "opened twice"),
                            Event::Closed(number) => prop_assert!(view.remove(&number), "closed unopened"),
                            Event::Synced(_) => prop_assert!(false),
                        }
                    }
                    told = known.clone();
                }
            }
            prop_assert!(view.into_iter().eq(known.keys().map(|&it| u32::from(it))));
        }
    }
}
