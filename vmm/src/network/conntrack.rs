//! Makes the kernel forget connections of an earlier machine: all that a slot's namespace knows, and those that the host
//! remembers of the slot. What is not deleted stays for up to five days, in the one table of all guests of a host.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::failure::{Doing as _, Failure};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE` of linux/netfilter/nfnetlink*.h.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// A netlink header, and with the `nfgenmsg` behind it.
const HEADER: usize = 16;
const PREAMBLE: usize = 20;
/// Where `nfgenmsg` names the family of addresses.
const FAMILY: usize = 16;
/// The kernel sends no more at once.
const LARGEST_ANSWER: usize = 64 << 10;

// Attributes of linux/netfilter/nfnetlink_conntrack.h.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_IP_SRC` of net/netfilter/nf_internals.h: of a filter's tuple this alone counts.
const BY_SOURCE: u32 = 1;

const NESTED: u16 = libc::NLA_F_NESTED as u16;
/// Of an attribute's type, what is not the type.
const TYPE_FLAGS: u16 = libc::NLA_F_NESTED as u16 | libc::NLA_F_NET_BYTEORDER as u16;

/// Deletes every tracked connection of the thread's namespace.
pub fn flush() -> Result<(), Failure> {
    // Naming no connection means all of them.
    let all = Request::new(DELETE, libc::NLM_F_ACK);
    Ctnetlink::open().and_then(|kernel| kernel.carry_out(all)).doing(|| "forgetting tracked connections")
}

/// Deletes the tracked connections of the thread's namespace that began at this address, and no others.
pub fn forget(source: Ipv4Addr) -> Result<(), Failure> {
    let forgotten = Ctnetlink::open().and_then(|kernel| {
        kernel.connections_from(source)?.into_iter().try_for_each(|connection| {
            match kernel.carry_out(connection) {
                // It ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                result => result,
            }
        })
    });
    forgotten.doing(|| format!("forgetting tracked connections from {source}"))
}

/// A socket to the kernel about the connections of the namespace it was opened in.
struct Ctnetlink(OwnedFd);

impl Ctnetlink {
    fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkNetFilter;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    fn send(&self, request: Request) -> io::Result<()> {
        let message = request.finish();
        sendto(self.0.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Sends a request that is answered by how it went.
    fn carry_out(&self, request: Request) -> io::Result<()> {
        self.send(request)?;
        let mut answer = [0; 256];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        outcome(answer[..length].get(HEADER..).unwrap_or_default())
    }

    /// A request to delete each connection that began there.
    fn connections_from(&self, source: Ipv4Addr) -> io::Result<Vec<Request>> {
        let address = attribute(CTA_IP_V4_SRC, &source.octets());
        let tuple = attribute(CTA_TUPLE_IP | NESTED, &address);
        let by_source = attribute(CTA_FILTER_ORIG_FLAGS, &BY_SOURCE.to_ne_bytes());
        let list = Request::of_ipv4(GET, libc::NLM_F_DUMP)
            .with(CTA_TUPLE_ORIG | NESTED, &tuple)
            .with(CTA_FILTER | NESTED, &by_source);
        self.send(list)?;
        let mut found = Vec::new();
        let mut buffer = vec![0; LARGEST_ANSWER];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, content) in messages(&buffer[..length]) {
                if [libc::NLMSG_DONE, libc::NLMSG_ERROR].contains(&kind.into()) {
                    outcome(content)?;
                    return Ok(found);
                }
                // Linux before 5.8 knows no filter, and lists them all.
                found.extend(content.get(PREAMBLE - HEADER..).and_then(|entry| deletion(entry, source)));
            }
        }
    }
}

/// The request to delete a listed connection, if it began there.
fn deletion(entry: &[u8], source: Ipv4Addr) -> Option<Request> {
    let tuple = find(entry, CTA_TUPLE_ORIG)?;
    if find(find(tuple, CTA_TUPLE_IP)?, CTA_IP_V4_SRC)? != source.octets() {
        return None;
    }
    let request = Request::of_ipv4(DELETE, libc::NLM_F_ACK).with(CTA_TUPLE_ORIG | NESTED, tuple);
    Some(match find(entry, CTA_ZONE) {
        Some(zone) => request.with(CTA_ZONE, zone),
        None => request,
    })
}

/// One message to the kernel.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let mut message = Vec::from([0; 4]);
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Sequence and port number, then family, version and resource: all zero.
        message.resize(PREAMBLE, 0);
        Self(message)
    }

    fn of_ipv4(kind: u16, flags: i32) -> Self {
        let mut request = Self::new(kind, flags);
        request.0[FAMILY] = libc::AF_INET as u8;
        request
    }

    fn with(mut self, kind: u16, content: &[u8]) -> Self {
        self.0.extend(attribute(kind, content));
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// An attribute with the padding behind it.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = 4 + content.len();
    let mut bytes = Vec::with_capacity(aligned(length));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(aligned(length), 0);
    bytes
}

/// Messages and attributes begin at multiples of four bytes.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The content of the first attribute of this type.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let found = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        if found & !TYPE_FLAGS == kind {
            return attributes.get(4..length);
        }
        // One that is shorter than its own header would be looked at for ever.
        attributes = attributes.get(aligned(length.max(4))..)?;
    }
}

/// Types and contents of the messages that came together.
fn messages(mut received: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*received.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*received.get(4..)?.first_chunk()?);
        let content = received.get(HEADER..length)?;
        received = received.get(aligned(length)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// What an acknowledgement, or the end of a list, says: an error number, zero or negative.
fn outcome(content: &[u8]) -> io::Result<()> {
    match content.first_chunk() {
        Some(code) => match i32::from_ne_bytes(*code) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{SocketAddr, UdpSocket},
        process::Command,
        thread,
    };

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::network::rules;

    /// How many connections from an address the thread's namespace knows.
    fn known(source: Ipv4Addr) -> usize {
        let table = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
        let source = format!("src={source}");
        // An entry's first source is where the connection began.
        let began = |line: &str| line.split(' ').find(|word| word.starts_with("src=")) == Some(&source);
        table.lines().filter(|line| began(line)).count()
    }

    #[test]
    fn connections_from_one_address_are_forgotten_and_no_others() {
        assert!(nix::unistd::geteuid().is_root(), "tracked connections need root");
        const MANY: usize = 500;
        let (one, other) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            // A namespace tracks connections once a rule asks for them.
            rules::apply(&rules::host_rules(&[])).unwrap();
            let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let server = server.local_addr().unwrap();
            let talk = |from: Ipv4Addr| {
                let socket = UdpSocket::bind(SocketAddr::from((from, 0))).unwrap();
                socket.send_to(b"a", server).unwrap();
                socket
            };
            let _sockets: Vec<_> = (0..MANY).map(|_| talk(one)).chain([talk(other)]).collect();
            assert_eq!((known(one), known(other)), (MANY, 1));
            forget(one).unwrap();
            assert_eq!((known(one), known(other)), (0, 1));
            forget(one).unwrap();
            flush().unwrap();
            assert_eq!((known(one), known(other)), (0, 0));
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }

    #[test]
    fn what_is_cut_off_or_has_no_length_ends_the_search() {
        let two = [attribute(1, b"a"), attribute(2 | NESTED, b"bcd")].concat();
        assert_eq!((find(&two, 1), find(&two, 2), find(&two, 3)), (Some(&b"a"[..]), Some(&b"bcd"[..]), None));
        for length in 0..two.len() {
            assert_eq!(find(&two[..length], 3), None);
        }
        assert_eq!(find(&[0; 64], 3), None);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
