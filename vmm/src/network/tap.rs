//! The guest's end of a slot's network.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::errno::Errno;

use crate::failure::{Doing as _, Failure, while_busy};

/// Makes a TAP in the thread's namespace that stays when nobody has it open.
pub fn create(name: &str) -> Result<(), Failure> {
    let doing = || format!("making the TAP {name}");
    let tap = attach(name).doing(doing)?;
    // SAFETY: the request takes an integer.
    Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, 1) }).doing(doing)?;
    Ok(())
}

/// Opens the TAP of the thread's namespace for a VMM. Only one can have it: if it stays busy, another VMM lives. May block
/// for [as long](while_busy).
pub fn open(name: &str) -> Result<OwnedFd, Failure> {
    let tap = while_busy(|| attach(name).doing(|| format!("opening the TAP {name}")))?;
    Ok(tap.into())
}

fn attach(name: &str) -> io::Result<File> {
    let tap =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request reads and writes one such structure, which lives through the call.
    Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(tap)
}
