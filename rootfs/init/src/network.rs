//! The guest's side of its network: the same address in every capsule, the host's namespaces keep
//! them apart. By ioctl, because a machine without `ip` must have a network too.

use std::{
    fs, io,
    mem::{size_of, zeroed},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

use crate::failure::Failure;

/// The guest's address; link-local, so that it collides with nobody's network.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
/// The host's end of the TAP.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
const INTERFACE: &str = "eth0";

/// Brings up loopback and the network card. A machine without network is still a machine: whatever
/// fails is returned, not fatal.
pub fn set_up() -> Vec<Failure> {
    let mut failures = Vec::new();
    failures.extend(bring_up("lo").map_err(Failure::of("bringing up lo")).err());
    failures.extend(set_up_interface().map_err(Failure::of(format!("setting up {INTERFACE}"))).err());
    failures
}

fn set_up_interface() -> io::Result<()> {
    // Nobody answers IPv6 on this link; asking for routers and addresses would wake an idle guest.
    match fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = control_socket()?;
    let mut request = interface_request(INTERFACE);
    request.ifr_ifru.ifru_addr = socket_address(ADDRESS);
    ioctl(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = socket_address(NETMASK);
    ioctl(&socket, libc::SIOCSIFNETMASK, &mut request)?;
    bring_up(INTERFACE)?;
    add_default_route(&socket)
}

fn bring_up(interface: &str) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = interface_request(interface);
    ioctl(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS, &mut request)
}

fn add_default_route(socket: &UdpSocket) -> io::Result<()> {
    // SAFETY: `rtentry` is plain data for which all zeroes is a valid value.
    let mut route: libc::rtentry = unsafe { zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(GATEWAY);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ioctl(socket, libc::SIOCADDRT, &mut route)
}

/// Any IPv4 socket will do to talk about interfaces.
fn control_socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // One byte less than there is room for: the name stays terminated.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    const { assert!(size_of::<libc::sockaddr_in>() == size_of::<libc::sockaddr>()) };
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of one size; the kernel reads the general one by its family.
    unsafe { std::mem::transmute(inet) }
}

fn ioctl<T>(socket: &UdpSocket, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller passes the type that its request is defined on, alive for the whole call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
