//! One connection: frames by this process, pieces by the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use prost::Message;
use tokio::io::Interest;
use tokio::net::TcpStream;
use wrenn_proto::content::LONGEST_FRAME;
use wrenn_proto::envd::v1::ContentAnswer;
use wrenn_proto::envd::v1::content_answer::What;

/// A socket that does not block.
#[derive(Debug)]
pub struct Wire {
    stream: Arc<TcpStream>,
}

/// How far a piece of work on a socket got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The socket has nothing more, or takes nothing more, for now.
    Blocked,
    Done,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: Arc::new(stream) }
    }

    /// For a thread that works on it.
    pub fn socket(&self) -> Arc<TcpStream> {
        Arc::clone(&self.stream)
    }

    /// Waits until there is something to be read, for a thread that found nothing.
    pub async fn readable_again(&self) -> io::Result<()> {
        self.ready_again(Interest::READABLE, PollFlags::POLLIN).await
    }

    /// The same for room to write.
    pub async fn writable_again(&self) -> io::Result<()> {
        self.ready_again(Interest::WRITABLE, PollFlags::POLLOUT).await
    }

    async fn ready_again(&self, interest: Interest, events: PollFlags) -> io::Result<()> {
        // What the thread saw is not what the runtime knows: it must see it by itself, or the change that follows
        // could have come before it began to wait for one.
        let look = || {
            let mut socket = [PollFd::new(self.stream.as_fd(), events)];
            match poll(&mut socket, PollTimeout::ZERO)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        };
        match self.stream.try_io(interest, look) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stream.ready(interest).await.map(drop)
            }
            looked => looked,
        }
    }

    pub async fn read_exact<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes).await?;
        Ok(bytes)
    }

    /// The next message.
    ///
    /// # Errors
    /// The connection is over, or what came is no message.
    pub async fn read_frame<M: Message + Default>(&self) -> io::Result<M> {
        let length = u32::from_be_bytes(self.read_exact().await?) as usize;
        if length > LONGEST_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes).await?;
        Ok(M::decode(bytes.as_slice())?)
    }

    pub async fn answer(&self, what: What) -> io::Result<()> {
        let message = ContentAnswer { what: Some(what) };
        let length = u32::try_from(message.encoded_len()).map_err(io::Error::other)?;
        let mut frame = length.to_be_bytes().to_vec();
        message.encode(&mut frame)?;
        self.write(&frame).await
    }

    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => bytes = bytes.get(written?..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    async fn fill(&self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.read_some(bytes).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => bytes = bytes.get_mut(got..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    async fn read_some(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// Says that nothing follows and takes what the peer is still sending, so that it can read why.
    pub async fn end_after(&self, linger: Duration) {
        let drain = async {
            let mut dropped = vec![0; LONGEST_FRAME];
            shutdown(self.stream.as_raw_fd(), Shutdown::Write)?;
            while self.read_some(&mut dropped).await? > 0 {}
            io::Result::Ok(())
        };
        // However it ends, the connection does.
        let _ = tokio::time::timeout(linger, drain).await;
    }
}
