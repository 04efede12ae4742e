//! From the socket to a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::pipe2;
use tokio::net::TcpStream;
use wrenn_proto::content::LONGEST_PIECE;

use super::wire::{Step, Wire};
use crate::files::error::{FileError, Target};
use crate::files::write::Writing;

/// Bytes that are between socket and file at once; the most that the kernel gives everybody.
const BETWEEN: i32 = 1 << 20;

/// Content on its way in.
#[derive(Debug, Default)]
pub struct Receiving {
    /// Of the next piece's length, what has come.
    length: [u8; 4],
    got: usize,
    /// Bytes of the piece that have not come.
    left: usize,
    /// What is between: the kernel moves pages through it.
    pipe: Option<(File, File)>,
}

/// Why content did not come to its end.
#[derive(Debug)]
pub enum NotReceived {
    BrokeOff,
    TooLong(u32),
    File(FileError),
}

impl From<FileError> for NotReceived {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl Receiving {
    /// Appends all that comes, to its end.
    pub async fn run(mut self, wire: &Wire, writing: &mut Writing) -> Result<(), NotReceived> {
        loop {
            let socket = wire.socket();
            let work = move |file: &File, target: &Target| {
                let step = self.advance(&socket, file, target);
                (self, step)
            };
            let (receiving, step) = writing.append(work).await?;
            self = receiving;
            match step? {
                Step::Done => return Ok(()),
                Step::Blocked => wire.readable_again().await.map_err(|_| NotReceived::BrokeOff)?,
            }
        }
    }

    /// Takes what has come.
    fn advance(&mut self, socket: &TcpStream, file: &File, target: &Target) -> Result<Step, NotReceived> {
        loop {
            if self.left == 0 {
                let rest = self.length.get_mut(self.got..).unwrap_or_default();
                match recv(socket.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT) {
                    Ok(0) => return Err(NotReceived::BrokeOff),
                    Ok(got) => self.got += got,
                    Err(Errno::EAGAIN) => return Ok(Step::Blocked),
                    Err(Errno::EINTR) => {}
                    Err(_) => return Err(NotReceived::BrokeOff),
                }
                if self.got == self.length.len() {
                    self.got = 0;
                    match u32::from_be_bytes(self.length) {
                        0 => return Ok(Step::Done),
                        length if length > LONGEST_PIECE => return Err(NotReceived::TooLong(length)),
                        length => self.left = length as usize,
                    }
                }
            } else if self.pour(socket, file, target)? == Step::Blocked {
                return Ok(Step::Blocked);
            }
        }
    }

    /// Moves some of a piece.
    fn pour(&mut self, socket: &TcpStream, file: &File, target: &Target) -> Result<Step, NotReceived> {
        if self.pipe.is_none() {
            self.pipe = Some(pipe().map_err(target.cannot("write"))?);
        }
        let Some((from, into)) = &self.pipe else { return Ok(Step::Blocked) };
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let came = match splice(socket, None, into, None, self.left, flags) {
            Ok(0) => return Err(NotReceived::BrokeOff),
            Ok(came) => came,
            Err(Errno::EAGAIN) => return Ok(Step::Blocked),
            Err(Errno::EINTR) => return Ok(Step::Done),
            Err(_) => return Err(NotReceived::BrokeOff),
        };
        self.left = self.left.saturating_sub(came);
        drain(from, file, came).map_err(target.cannot("write"))?;
        Ok(Step::Done)
    }
}

/// Empties the pipe into the file.
fn drain(from: &File, file: &File, mut left: usize) -> nix::Result<()> {
    while left > 0 {
        match splice(from, None, file, None, left, SpliceFFlags::SPLICE_F_MOVE) {
            Ok(0) => return Err(Errno::EIO),
            Ok(moved) => left = left.saturating_sub(moved),
            Err(Errno::EINTR) => {}
            // A file system that takes no pages.
            Err(Errno::EINVAL) => return copy(from, file, left),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy(mut from: &File, mut file: &File, left: usize) -> nix::Result<()> {
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let mut bytes = vec![0; left];
    from.read_exact(&mut bytes).map_err(errno)?;
    file.write_all(&bytes).map_err(errno)
}

fn pipe() -> nix::Result<(File, File)> {
    let (from, into): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC)?;
    // A smaller one does as well.
    let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(BETWEEN));
    Ok((from.into(), into.into()))
}
