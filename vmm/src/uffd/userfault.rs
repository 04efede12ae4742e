//! A userfaultfd that another process made over its own memory: the kernel's messages, and the answers.
//!
//! Five requests are used, so they are made here with nix instead of with a crate of bindings, which
//! would need libclang to build and does not tell a copy that was cut short from one that was refused.
//! Their layout is that of linux/userfaultfd.h.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};

use super::source::PAGE;
use crate::failure::{Doing as _, Failure};

/// Most messages read at once.
const BATCH: usize = 16;
/// Bytes of one `struct uffd_msg`.
const MESSAGE: usize = 32;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
/// Flags of a fault that is not about a missing page: on a write-protected one, or one not yet mapped.
const FAULT_OF_OTHER_KINDS: u64 = 0b110;

#[repr(C)]
pub struct Range {
    start: u64,
    length: u64,
}

#[repr(C)]
pub struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
pub struct ZeroPage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

nix::ioctl_read!(uffdio_wake, 0xAA, 0x02, Range);
nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, ZeroPage);

/// What the kernel has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A thread waits for the page of this address.
    Fault { address: u64 },
    /// The memory from `start` to `end` is about to be given back: its content is lost as soon as this
    /// message has been read, and not before.
    Remove { start: u64, end: u64 },
}

/// What became of pages that were offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many bytes of them, from the first on, are there now; at least one page. Who waited is awake.
    Placed(u64),
    /// The first is there already: nothing was changed.
    Present,
    /// A removal was not read yet, or is just being carried out: nothing was changed.
    Busy,
    /// Not the memory of one mapping that this descriptor is responsible for.
    Unmapped,
    /// The host, or the limit of the memory's owner, has no page left.
    NoMemory,
    /// The memory's owner has ended.
    Gone,
}

pub struct Userfault(OwnedFd);

impl Userfault {
    pub fn new(descriptor: OwnedFd) -> Result<Self, Failure> {
        let doing = || "making the userfaultfd not block";
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL).doing(doing)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).doing(doing)?;
        Ok(Self(descriptor))
    }

    /// The messages that are there, at most sixteen; none is no error.
    pub fn read(&self) -> Result<Vec<Message>, Failure> {
        let mut bytes = [0; BATCH * MESSAGE];
        let doing = || "reading from the userfaultfd";
        let length = loop {
            match nix::unistd::read(&self.0, &mut bytes) {
                Ok(length) => break length,
                Err(Errno::EAGAIN) => break 0,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).doing(doing),
            }
        };
        let messages = bytes[..length].as_chunks::<MESSAGE>().0;
        messages.iter().map(parse).collect::<io::Result<_>>().doing(doing)
    }

    /// Puts copies of whole pages at an address.
    pub fn copy(&self, to: u64, pages: &[u8]) -> Result<Outcome, Failure> {
        let length = pages.len() as u64;
        let mut request = Copy { to, from: pages.as_ptr() as u64, length, mode: 0, copied: 0 };
        // SAFETY: the kernel reads `length` bytes at `from`, which is that slice, and writes the request. It
        // writes memory of the owner of the descriptor only where that has registered it.
        let result = unsafe { uffdio_copy(self.0.as_raw_fd(), &raw mut request) };
        outcome(result, request.copied, length).doing(|| format!("copying {length} bytes to {to:#x}"))
    }

    /// Puts zeros at an address, which cost no memory until they are written to.
    pub fn zero(&self, at: u64, length: u64) -> Result<Outcome, Failure> {
        let mut request = ZeroPage { range: Range { start: at, length }, mode: 0, zeroed: 0 };
        // SAFETY: the kernel writes the request, and memory as above.
        let result = unsafe { uffdio_zeropage(self.0.as_raw_fd(), &raw mut request) };
        outcome(result, request.zeroed, length).doing(|| format!("putting {length} zeros at {at:#x}"))
    }

    /// Lets whoever waits for a page look again.
    pub fn wake(&self, at: u64) -> Result<(), Failure> {
        let mut range = Range { start: at, length: PAGE };
        // SAFETY: the kernel reads the range.
        let result = unsafe { uffdio_wake(self.0.as_raw_fd(), &raw mut range) };
        result.map(drop).doing(|| format!("waking who waits for {at:#x}"))
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn parse(message: &[u8; MESSAGE]) -> io::Result<Message> {
    let number = |at: usize| {
        let bytes = message[at..].first_chunk::<8>();
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    match message[0] {
        EVENT_PAGEFAULT if number(8) & FAULT_OF_OTHER_KINDS == 0 => {
            Ok(Message::Fault { address: number(16) })
        }
        EVENT_REMOVE => Ok(Message::Remove { start: number(8), end: number(16) }),
        event => {
            let flags = number(8);
            // Nobody asked the kernel for any other: not to know what happened to memory is no
            // ground to go on from.
            Err(io::Error::other(format!("event {event:#x} with {flags:#x} is none that was asked for")))
        }
    }
}

/// The kernel says how much it did in the request, and fails with `EAGAIN` when that was not all. It does
/// not always write it when it did nothing: then it is the zero it started as.
fn outcome(result: nix::Result<i32>, done: i64, length: u64) -> io::Result<Outcome> {
    match (result, u64::try_from(done)) {
        (Ok(_), _) => Ok(Outcome::Placed(length)),
        (Err(_), Ok(done)) if done > 0 => Ok(Outcome::Placed(done)),
        (Err(Errno::EEXIST), _) => Ok(Outcome::Present),
        (Err(Errno::EAGAIN), _) => Ok(Outcome::Busy),
        (Err(Errno::ENOENT), _) => Ok(Outcome::Unmapped),
        (Err(Errno::ENOMEM), _) => Ok(Outcome::NoMemory),
        (Err(Errno::ESRCH), _) => Ok(Outcome::Gone),
        (Err(errno), _) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: u8, first: u64, second: u64) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[0] = event;
        bytes[8..16].copy_from_slice(&first.to_ne_bytes());
        bytes[16..24].copy_from_slice(&second.to_ne_bytes());
        bytes
    }

    #[test]
    fn faults_on_missing_pages_and_removals_are_all_that_is_understood() {
        assert_eq!(parse(&message(0x12, 1, 0x7000)).unwrap(), Message::Fault { address: 0x7000 });
        let removal = Message::Remove { start: 0x1000, end: 0x3000 };
        assert_eq!(parse(&message(0x15, 0x1000, 0x3000)).unwrap(), removal);
        // Write-protected, minor; fork, remap, unmap; nothing.
        for (event, flags) in [(0x12, 2), (0x12, 4), (0x13, 0), (0x14, 0), (0x16, 0), (0, 0)] {
            assert!(parse(&message(event, flags, 0)).is_err(), "{event:#x}");
        }
    }

    #[test]
    fn a_copy_cut_short_is_told_from_one_that_was_refused() {
        assert_eq!(outcome(Ok(0), 8192, 8192).unwrap(), Outcome::Placed(8192));
        assert_eq!(outcome(Err(Errno::EAGAIN), 4096, 8192).unwrap(), Outcome::Placed(4096));
        assert_eq!(outcome(Err(Errno::EAGAIN), 0, 8192).unwrap(), Outcome::Busy);
        assert_eq!(outcome(Err(Errno::EAGAIN), -11, 8192).unwrap(), Outcome::Busy);
        assert_eq!(outcome(Err(Errno::EEXIST), -17, 8192).unwrap(), Outcome::Present);
        assert_eq!(outcome(Err(Errno::ENOENT), -2, 8192).unwrap(), Outcome::Unmapped);
        assert_eq!(outcome(Err(Errno::ESRCH), 0, 8192).unwrap(), Outcome::Gone);
        assert!(outcome(Err(Errno::EFAULT), -14, 8192).is_err());
    }
}
