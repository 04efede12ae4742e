//! Makes a namespace forget the connections of an earlier machine.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::failure::{Doing as _, Failure};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE` of linux/netfilter/nfnetlink*.h.
const DELETE: u16 = 1 << 8 | 2;
/// A netlink header and an `nfgenmsg`; naming no connection means all of them.
const LENGTH: u32 = 20;

/// Deletes every tracked connection of the thread's namespace.
pub fn flush() -> Result<(), Failure> {
    flush_here().doing(|| "forgetting tracked connections")
}

fn flush_here() -> io::Result<()> {
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(DELETE.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence and port number, then family, version and resource: all zero.
    message.resize(LENGTH as usize, 0);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;

    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // An acknowledgement: header, then the error number, zero or negative.
    match answer[..length].get(16..20).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
        Some(code) => match i32::from_ne_bytes(code) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
