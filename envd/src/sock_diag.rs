//! Ends the guest's connections to outside, by the means the kernel has for it (sock_diag(7)): whoever waits on one is
//! told at once that it was aborted, and not only when it has something to send.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// The states of net/tcp_states.h that a connection is in from when it is made to when both sides have let go of it. One
/// that is only being made is made anew from where it is now.
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Length of a netlink header, of `inet_diag_sockid`, and of what stands before that in `inet_diag_msg`.
const HEADER: usize = 16;
const ID: usize = 48;
const BEFORE_ID: usize = 4;

/// One connection, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    family: u8,
    /// `inet_diag_sockid`: ports, addresses, interface and a cookie, which no other socket ever has.
    id: [u8; ID],
}

impl Connection {
    /// From an `inet_diag_msg`.
    fn parse(message: &[u8]) -> Option<Self> {
        let id = message.get(BEFORE_ID..)?.first_chunk()?;
        Some(Self { family: *message.first()?, id: *id })
    }

    fn local_port(&self) -> Option<u16> {
        self.id.first_chunk().copied().map(u16::from_be_bytes)
    }

    fn local(&self) -> Option<IpAddr> {
        self.address(4)
    }

    fn peer(&self) -> Option<IpAddr> {
        self.address(20)
    }

    /// A v4 address is never in its v6 form.
    fn address(&self, at: usize) -> Option<IpAddr> {
        let bytes = self.id.get(at..)?;
        match i32::from(self.family) {
            libc::AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
            libc::AF_INET6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_canonical()),
            _ => None,
        }
    }

    /// Whether it leaves the machine by its address `own`.
    fn leads_outside(&self, own: IpAddr) -> bool {
        self.local() == Some(own) && self.peer() != Some(own)
    }
}

/// Ends every TCP connection between `own`, an address of this machine, and another machine; not those of the port
/// `spared`.
///
/// # Errors
/// The kernel cannot do it, or may not for this process. Some may have been ended.
pub fn end_connections(own: Ipv4Addr, spared: u16) -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut found = Vec::new();
    // Many programs use v6 sockets for v4 connections.
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        connections(&socket, family, &mut found)?;
    }
    for connection in found {
        if connection.leads_outside(own.into()) && connection.local_port() != Some(spared) {
            end(&socket, &connection)?;
        }
    }
    Ok(())
}

/// Adds the connections of this thread's network.
fn connections(socket: &OwnedFd, family: u8, found: &mut Vec<Connection>) -> io::Result<()> {
    let any = Connection { family, id: [0; ID] };
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    ask(socket, SOCK_DIAG_BY_FAMILY, flags, &any)?;
    answered(socket, |message| found.extend(Connection::parse(message)))
}

fn end(socket: &OwnedFd, connection: &Connection) -> io::Result<()> {
    ask(socket, SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, connection)?;
    match answered(socket, |_| ()) {
        // It has ended by itself.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Sends an `inet_diag_req_v2`.
fn ask(socket: &OwnedFd, what: u16, flags: libc::c_int, connection: &Connection) -> io::Result<()> {
    let mut request = Vec::with_capacity(HEADER + 8 + ID);
    request.extend(((HEADER + 8 + ID) as u32).to_ne_bytes());
    request.extend(what.to_ne_bytes());
    request.extend((flags as u16).to_ne_bytes());
    // Sequence and port number.
    request.extend([0; 8]);
    request.extend([connection.family, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(connection.id);
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

/// Reads an answer to its end: an acknowledgement, or messages and the word that there are no more.
fn answered(socket: &OwnedFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, content, after)) = split_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_ERROR => return acknowledged(content),
                libc::NLMSG_DONE => return Ok(()),
                _ => each(content),
            }
            rest = after;
        }
        if !rest.is_empty() || length == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// The first message of several: its type, its content, and what comes after it. None if that is none.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let content = bytes.get(HEADER..length)?;
    // Each begins at a multiple of four bytes.
    Some((kind, content, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// An error's number is negative, and zero where there is none.
fn acknowledged(content: &[u8]) -> io::Result<()> {
    match content.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(local: &str, peer: &str) -> Connection {
        let mut id = [0; ID];
        let mut family = libc::AF_INET;
        for (at, address) in [(4, local), (20, peer)] {
            match address.parse().expect("an address") {
                IpAddr::V4(address) => id[at..at + 4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => {
                    family = libc::AF_INET6;
                    id[at..at + 16].copy_from_slice(&address.octets());
                }
            }
        }
        Connection { family: family as u8, id }
    }

    #[test]
    fn who_leads_outside() {
        for (local, peer, outside) in [
            ("169.254.0.21", "198.18.0.1", true),
            ("::ffff:169.254.0.21", "::ffff:198.18.0.1", true),
            ("169.254.0.21", "169.254.0.22", true),
            ("169.254.0.21", "169.254.0.21", false),
            ("127.0.0.1", "127.0.0.1", false),
            ("127.0.0.1", "169.254.0.21", false),
            ("::1", "::1", false),
            ("172.17.0.1", "172.17.0.2", false),
        ] {
            let own = IpAddr::from([169, 254, 0, 21]);
            assert_eq!(connection(local, peer).leads_outside(own), outside, "{local} to {peer}");
        }
    }

    #[test]
    fn broken_messages_are_none() {
        for length in 0..HEADER {
            assert_eq!(split_message(&vec![0; length]), None, "{length} bytes");
        }
        let mut message = vec![0; HEADER + 6];
        for (said, whole) in [(0, false), (15, false), (16, true), (21, true), (22, true), (23, false)] {
            message[..4].copy_from_slice(&u32::to_ne_bytes(said));
            assert_eq!(split_message(&message).is_some(), whole, "{said} of {} bytes", message.len());
        }
        assert_eq!(Connection::parse(&[0; BEFORE_ID + ID - 1]), None);
        assert!(acknowledged(&[0; 3]).is_err());
    }
}
