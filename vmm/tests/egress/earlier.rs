//! Connections that a restored guest believes to have.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use wrenn_vmm::network::EgressPolicy;

use crate::{
    allocator, end, guest,
    world::{PATIENCE, WEB},
    zone::outside,
};

/// A connection as it is in such a guest's memory: one side of it, of which nobody else knows.
fn believed(to: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    set_repair(&socket, 1)?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, WEB)))?;
    // From here on it is used: the kernel asks for the other side's window.
    set_repair(&socket, 0)?;
    Ok(TcpStream::from(socket))
}

/// `TCP_REPAIR` of tcp(7).
fn set_repair(socket: &OwnedFd, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads one int, which lives through the call.
    let result = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, value, length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_began_elsewhere_is_reset_where_it_leaves() {
    let slots = allocator("31185-31185", 0, &[]).await;
    let guest = guest(&slots, &EgressPolicy::default()).await;
    let error = guest.run(|| {
        let mut stream = believed(outside(30)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // What it has to say is said again until it is answered; a question for the window is asked once.
        match stream.write_all(b"x") {
            Ok(()) => stream.read(&mut [0]).unwrap_err(),
            Err(error) => error,
        }
    });
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    let host = format!("src={} ", guest.number.namespace_address());
    let table = fs::read_to_string("/proc/net/nf_conntrack").unwrap();
    assert!(!table.contains(&host), "the host has seen nothing of it: {table}");
    guest.assert_reaches(outside(30), WEB);
    end(slots, [guest]).await;
}
