//! The one message a VMM sends: where its memory is, and the descriptor its faults are answered through.

use std::{
    io::{self, IoSliceMut, Read as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, sockopt::PeerCredentials,
    },
};

use super::{
    layout::{Layout, LayoutError},
    userfault::Userfault,
};
use crate::{
    failure::{Doing as _, Failure},
    process,
};

/// A VMM that has connected sends its message at once.
const PROMPT: Duration = Duration::from_secs(5);
/// A description of a region has some 120 bytes, and a guest has a handful of regions.
const LONGEST: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error(transparent)]
    Io(#[from] Failure),
    #[error("the VMM sent no descriptor with its memory's layout")]
    NoDescriptor,
    #[error("the VMM's memory cannot be served")]
    Layout(#[from] LayoutError),
    #[error("the VMM, process {0}, cannot be watched")]
    Vmm(i32, #[source] process::ProcessError),
    #[error("the VMM, process {0}, ended while it connected")]
    Ended(i32),
}

/// A VMM that waits for its memory.
pub struct Vmm {
    pub userfault: Userfault,
    pub layout: Layout,
    pub pid: i32,
    /// Readable when the VMM has ended.
    pub pidfd: OwnedFd,
}

/// Receives the message from a connection. `source_bytes` is how much memory there is to be served.
pub fn receive(mut stream: UnixStream, source_bytes: u64) -> Result<Vmm, HandshakeError> {
    let doing = || "receiving the VMM's memory layout";
    stream.set_nonblocking(false).doing(doing)?;
    stream.set_read_timeout(Some(PROMPT)).doing(doing)?;
    let (mut json, descriptor) = first_part(&stream).doing(doing)?;
    let layout = loop {
        match Layout::parse(&json, source_bytes) {
            // A stream may deliver the message in parts.
            Err(LayoutError::Syntax(error)) if error.is_eof() && json.len() < LONGEST => {
                let mut part = [0; 4096];
                let length = stream.read(&mut part).doing(doing)?;
                if length == 0 {
                    return Err(LayoutError::Syntax(error).into());
                }
                json.extend_from_slice(&part[..length]);
            }
            result => break result?,
        }
    };
    let userfault = Userfault::new(descriptor.ok_or(HandshakeError::NoDescriptor)?)?;
    let pid = getsockopt(&stream, PeerCredentials).as_ref().map(UnixCredentials::pid).map_err(|errno| *errno);
    let pid = pid.doing(|| "asking who the VMM is")?;
    let pidfd = process::open(pid).map_err(|error| HandshakeError::Vmm(pid, error))?;
    // The number was the VMM's when the descriptor was opened if its end of the connection is open now.
    if is_closed(&stream).doing(doing)? {
        return Err(HandshakeError::Ended(pid));
    }
    Ok(Vmm { userfault, layout, pid, pidfd })
}

/// What comes first, and the descriptor that comes with it.
fn first_part(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST];
    let mut control = cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
            descriptors.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    bytes.truncate(length);
    Ok((bytes, descriptors.into_iter().next()))
}

fn is_closed(stream: &UnixStream) -> io::Result<bool> {
    let mut byte = [0];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match nix::sys::socket::recv(stream.as_raw_fd(), &mut byte, flags) {
        Ok(length) => Ok(length == 0),
        Err(nix::errno::Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Write as _},
        thread,
    };

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;
    use crate::uffd::source::PAGE;

    const SOURCE: u64 = 16 * PAGE;
    const JSON: &str = r#"[{"base_host_virt_addr": 4096, "size": 65536, "offset": 0, "page_size": 4096}]"#;

    const CUT: &str = r#"[{"base_host_virt_addr": 409"#;

    /// A connection to this very process, over which `parts` come, a descriptor with the first.
    fn connection(parts: &'static [&'static str], with_descriptor: bool) -> (UnixStream, UnixStream) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let descriptor = [0];
        let rights = [ControlMessage::ScmRights(&descriptor)];
        let rights = if with_descriptor { &rights[..] } else { &[] };
        let first = [IoSlice::new(parts[0].as_bytes())];
        sendmsg::<()>(theirs.as_raw_fd(), &first, rights, MsgFlags::empty(), None).unwrap();
        if parts.len() > 1 {
            let mut rest = theirs.try_clone().unwrap();
            thread::spawn(move || {
                parts[1..].iter().for_each(|part| rest.write_all(part.as_bytes()).unwrap());
            });
        }
        (theirs, ours)
    }

    #[test]
    fn a_message_in_parts_is_put_together() {
        let (first, second) = JSON.split_at(20);
        let parts: &'static [&'static str] = Box::leak(Box::new([first, second]));
        let (_theirs, ours) = connection(parts, true);
        let vmm = receive(ours, SOURCE).unwrap();
        assert_eq!(vmm.layout.neighbours(0), Some(0..16));
        assert_eq!(vmm.pid, std::process::id() as i32);
    }

    #[test]
    fn what_is_missing_is_said() {
        let (_theirs, ours) = connection(&[JSON], false);
        assert!(matches!(receive(ours, SOURCE), Err(HandshakeError::NoDescriptor)));
        let (_theirs, ours) = connection(&["hello"], true);
        assert!(matches!(receive(ours, SOURCE), Err(HandshakeError::Layout(_))));
        let (_theirs, ours) = connection(&[JSON], true);
        assert!(matches!(receive(ours, SOURCE - PAGE), Err(HandshakeError::Layout(_))));
        let (theirs, ours) = connection(&[CUT], true);
        theirs.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(matches!(receive(ours, SOURCE), Err(HandshakeError::Layout(LayoutError::Syntax(_)))));
        let (theirs, ours) = connection(&[JSON], true);
        drop(theirs);
        assert!(matches!(receive(ours, SOURCE), Err(HandshakeError::Ended(_))));
    }
}
