//! Messages to the kernel's packet filter, as they are written.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h.
pub const NFTABLES: u16 = 10;
/// Length of a netlink header.
pub const HEADER: usize = 16;

/// A socket to the kernel about the thread's namespace.
pub fn connect() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// A netlink header and an `nfgenmsg` before the body.
pub fn message(kind: u16, flags: i32, sequence: u32, resource: u16, body: &[u8]) -> Vec<u8> {
    let family = if resource == 0 { libc::NFPROTO_IPV4 } else { libc::AF_UNSPEC };
    let mut message = Vec::with_capacity(HEADER + 4 + body.len());
    message.extend(((HEADER + 4 + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend([family as u8, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(body);
    message
}

pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    attribute.extend(((4 + value.len()) as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

pub fn nested(kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut value = Vec::new();
    fill(&mut value);
    attribute(kind | libc::NLA_F_NESTED as u16, &value)
}

/// As C has it, with a zero byte at its end.
pub fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}
