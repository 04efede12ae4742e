//! From a file to the socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send};
use tokio::net::TcpStream;
use wrenn_proto::content::LONGEST_PIECE;

use super::wire::{Step, Wire};
use crate::files::Opened;
use crate::files::actor::Actor;
use crate::files::error::{FileError, Target};

/// Bytes of a file that the kernel does not pass on by itself, read at a time.
const COPIED: usize = 64 << 10;

/// A file on its way out, in pieces.
#[derive(Debug)]
pub struct Sending {
    file: Arc<File>,
    target: Target,
    offset: u64,
    /// Past the last byte wanted.
    end: u64,
    /// The kernel passes the file's pages on. It does not for files that it makes up while they are read.
    by_reference: bool,
    /// What comes before more of the file, and how much of it is sent.
    pending: Vec<u8>,
    sent: usize,
    /// Bytes of the file that were announced and are not sent.
    announced: u64,
    ending: bool,
}

/// Why a file was not sent to its end.
enum NotSent {
    Socket(io::Error),
    File(FileError),
}

impl Sending {
    pub fn new(opened: Opened, offset: u64, length: Option<u64>) -> Self {
        let Opened { target, file, made_up, content, .. } = opened;
        // No file has a byte beyond, and the kernel would take the number for a negative one.
        let end = offset.saturating_add(length.unwrap_or(u64::MAX)).min(i64::MAX as u64);
        Self {
            file,
            target,
            offset,
            end,
            by_reference: !made_up,
            ending: content.is_some(),
            pending: content.map_or_else(Vec::new, |it| only_piece(&it, offset, end)),
            sent: 0,
            announced: 0,
        }
    }

    /// Sends all that is wanted, and the end.
    ///
    /// # Errors
    /// The connection broke, outside; inside, the file could not be read and nothing is announced that is not sent.
    pub async fn run(mut self, wire: &Wire, actor: &Actor) -> io::Result<Result<(), FileError>> {
        loop {
            let between_pieces = self.is_between_pieces();
            let socket = wire.socket();
            let work = move || {
                let step = self.advance(&socket);
                Ok((self, step))
            };
            // As the user too: some files of /proc and /sys ask again at each read.
            let (sending, step) = match actor.run(work).await {
                Ok(worked) => worked,
                Err(error) if between_pieces => return Ok(Err(error)),
                Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            self = sending;
            match step {
                Ok(Step::Done) => return Ok(Ok(())),
                Ok(Step::Blocked) => wire.writable_again().await?,
                Err(NotSent::File(error)) if self.is_between_pieces() => return Ok(Err(error)),
                // The peer waits for bytes that do not come: that the connection ends is all it can be told.
                Err(NotSent::File(_)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(NotSent::Socket(error)) => return Err(error),
            }
        }
    }

    fn is_between_pieces(&self) -> bool {
        self.announced == 0 && self.sent == self.pending.len()
    }

    /// Sends until the socket takes no more.
    fn advance(&mut self, socket: &TcpStream) -> Result<Step, NotSent> {
        loop {
            if self.sent < self.pending.len() {
                let more = if self.announced > 0 { libc::MSG_MORE } else { 0 };
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::from_bits_retain(more);
                let rest = self.pending.get(self.sent..).unwrap_or_default();
                match send(socket.as_raw_fd(), rest, flags) {
                    Ok(sent) => self.sent += sent,
                    Err(Errno::EAGAIN) => return Ok(Step::Blocked),
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(NotSent::Socket(error.into())),
                }
            } else if self.announced > 0 {
                if self.pour(socket)? == Step::Blocked {
                    return Ok(Step::Blocked);
                }
            } else if self.ending {
                return Ok(Step::Done);
            } else {
                self.announce().map_err(NotSent::File)?;
            }
        }
    }

    /// Sends of the file what the socket takes at once.
    fn pour(&mut self, socket: &TcpStream) -> Result<Step, NotSent> {
        let unreadable = self.target.cannot("read");
        if !self.by_reference {
            // Announced before that was known.
            let got =
                self.copy(usize::try_from(self.announced).unwrap_or(usize::MAX)).map_err(NotSent::File)?;
            self.announced -= got;
            return if got > 0 { Ok(Step::Done) } else { Err(NotSent::File(unreadable(Errno::ESTALE))) };
        }
        let mut offset = i64::try_from(self.offset).unwrap_or(i64::MAX);
        let most = usize::try_from(self.announced).unwrap_or(usize::MAX);
        match sendfile64(socket.as_fd(), self.file.as_fd(), Some(&mut offset), most) {
            // It became shorter.
            Ok(0) => Err(NotSent::File(unreadable(Errno::ESTALE))),
            Ok(sent) => {
                self.offset += sent as u64;
                self.announced = self.announced.saturating_sub(sent as u64);
                Ok(Step::Done)
            }
            Err(Errno::EAGAIN) => Ok(Step::Blocked),
            Err(Errno::EINTR) => Ok(Step::Done),
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                self.by_reference = false;
                Ok(Step::Done)
            }
            Err(error @ (Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN | Errno::ETIMEDOUT)) => {
                Err(NotSent::Socket(error.into()))
            }
            Err(error) => Err(NotSent::File(unreadable(error))),
        }
    }

    /// Says how long the next piece is, or that there is none.
    fn announce(&mut self) -> Result<(), FileError> {
        (self.sent, self.announced) = (0, 0);
        self.pending.clear();
        let length = if self.by_reference {
            let size =
                self.file.metadata().map_err(|error| self.target.cannot("look at")(errno(&error)))?.len();
            let left = self.end.min(size).saturating_sub(self.offset);
            self.announced = left.min(LONGEST_PIECE.into());
            self.announced
        } else {
            self.copy(COPIED)?
        };
        self.ending = length == 0;
        let length = u32::try_from(length).unwrap_or_default();
        // In front of what was copied, if it was.
        self.pending.splice(0..0, length.to_be_bytes());
        Ok(())
    }

    /// Reads some of the file to be sent next; nothing at its end.
    fn copy(&mut self, most: usize) -> Result<u64, FileError> {
        let left = usize::try_from(self.end - self.offset.min(self.end)).unwrap_or(usize::MAX);
        self.pending.resize(most.min(COPIED).min(left), 0);
        self.sent = 0;
        let got = loop {
            match self.file.read_at(&mut self.pending, self.offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.pending.clear();
                    return Err(self.target.cannot("read")(errno(&error)));
                }
                Ok(got) => break got,
            }
        };
        self.pending.truncate(got);
        self.offset += got as u64;
        Ok(got as u64)
    }
}

/// What is wanted of a content, as the only piece, and the end.
fn only_piece(content: &[u8], offset: u64, end: u64) -> Vec<u8> {
    let within = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
    let wanted = content.get(within(offset)..within(end)).unwrap_or_default();
    let no_more = [0; 4];
    if wanted.is_empty() {
        return no_more.to_vec();
    }
    let length = u32::try_from(wanted.len()).unwrap_or_default();
    [&length.to_be_bytes(), wanted, &no_more].concat()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
