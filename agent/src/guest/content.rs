//! The content of a guest's files, over connections of its own (`wrenn_proto::content` is the protocol). They are kept
//! for the next file, within one life of the guest.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use wrenn_proto::FIELD;
use wrenn_proto::content::{BROKEN, LONGEST_FRAME, LONGEST_PIECE, PREAMBLE};
use wrenn_proto::envd::v1::content_answer::What as Answer;
use wrenn_proto::envd::v1::content_request::What as Asked;
use wrenn_proto::envd::v1::{
    ContentAnswer, ContentError, ContentRequest, FileEntry, ReadRequest, WriteStart,
};

use super::{LONGEST_ATTEMPT, reach};
use crate::request_id::RequestId;
use crate::token::Token;

/// Connections kept for the next file.
const IDLE: usize = 8;
/// Bytes read at once, and so the most in one part of a file that is passed on.
const READ: usize = 256 << 10;

/// The ways to the content of one guest's files.
#[derive(Debug)]
pub struct Content {
    address: SocketAddr,
    token: Bytes,
    idle: Mutex<Vec<Wire>>,
}

/// One connection, with what was read of it and not looked at.
#[derive(Debug)]
struct Wire {
    socket: TcpStream,
    read: BytesMut,
}

/// A file that is being read.
#[derive(Debug)]
pub struct Reading {
    content: Arc<Content>,
    /// Absent at the end.
    wire: Option<Wire>,
    /// Bytes of the piece that have not come.
    left: usize,
}

impl Content {
    pub fn new(address: SocketAddr, token: Option<&Token>) -> Arc<Self> {
        let token = token.map(|token| Bytes::copy_from_slice(token.bytes())).unwrap_or_default();
        Arc::new(Self { address, token, idle: Mutex::default() })
    }

    /// Opens a file; its content follows.
    pub async fn read(
        self: &Arc<Self>,
        request: ReadRequest,
        id: &RequestId,
    ) -> Result<(FileEntry, Reading), Status> {
        let (wire, answer) = self.ask(Asked::Read(request), id).await?;
        match answer {
            Answer::Entry(entry) => Ok((entry, Reading { content: self.clone(), wire: Some(wire), left: 0 })),
            _ => Err(nonsense()),
        }
    }

    /// Writes a file of what `parts` yields. When that breaks off nothing is written, and this says so by `None`.
    pub async fn write(
        &self,
        start: WriteStart,
        parts: impl Stream<Item = Option<Bytes>> + Send,
        id: &RequestId,
    ) -> Result<Option<FileEntry>, Status> {
        let (mut wire, answer) = self.ask(Asked::Write(start), id).await?;
        let Answer::Ready(_) = answer else { return Err(nonsense()) };
        let Wire { socket, read } = &mut wire;
        let (mut from, mut into) = socket.split();
        let ended = tokio::select! {
            sent = send(&mut into, parts) => match sent.map_err(broke)? {
                true => true,
                false => return Ok(None),
            },
            // What comes before the end is why there need not be one.
            got = from.read_buf(read) => got.map(|_| false).map_err(broke)?,
        };
        match wire.answer().await.map_err(broke)? {
            Answer::Entry(entry) if ended => {
                self.keep(wire);
                Ok(Some(entry))
            }
            Answer::Error(error) => Err(refused(error)),
            _ => Err(nonsense()),
        }
    }

    /// Asks on a kept connection, or else on a new one. An error that the guest answers with is one here.
    async fn ask(&self, what: Asked, id: &RequestId) -> Result<(Wire, Answer), Status> {
        let (token, request_id) = (self.token.clone(), id.to_string());
        let message = ContentRequest { token, request_id, what: Some(what) };
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let asked = match kept {
            // It may have ended since it was used last; nothing was done then.
            Some(wire) => wire.ask(&message).await.ok(),
            None => None,
        };
        let (wire, answer) = match asked {
            Some(asked) => asked,
            None => {
                let socket = reach(self.address, Instant::now() + LONGEST_ATTEMPT).await;
                let mut socket = socket.ok_or_else(|| broke(io::ErrorKind::TimedOut.into()))?;
                socket.write_all(PREAMBLE).await.map_err(broke)?;
                Wire { socket, read: BytesMut::new() }.ask(&message).await.map_err(broke)?
            }
        };
        match answer {
            Answer::Error(error) => {
                self.keep(wire);
                Err(refused(error))
            }
            answer => Ok((wire, answer)),
        }
    }

    fn keep(&self, wire: Wire) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && wire.read.is_empty() {
            idle.push(wire);
        }
    }
}

/// Sends all parts as pieces, and the end; says whether it came to that.
async fn send(
    into: &mut (impl AsyncWriteExt + Unpin),
    parts: impl Stream<Item = Option<Bytes>>,
) -> io::Result<bool> {
    let mut parts = pin!(parts);
    while let Some(part) = parts.next().await {
        let Some(mut part) = part else { return Ok(false) };
        while !part.is_empty() {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX).min(LONGEST_PIECE);
            let mut piece =
                Bytes::copy_from_slice(&length.to_be_bytes()).chain(part.split_to(length as usize));
            into.write_all_buf(&mut piece).await?;
        }
    }
    into.write_all(&0_u32.to_be_bytes()).await?;
    Ok(true)
}

impl Reading {
    /// The next part of the content; nothing at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(wire) = &mut self.wire else { return Ok(None) };
        if self.left == 0 {
            let length = wire.length().await.map_err(broke)?;
            if length == 0 {
                self.wire.take().into_iter().for_each(|wire| self.content.keep(wire));
                return Ok(None);
            }
            if length == BROKEN {
                return match wire.answer().await.map_err(broke)? {
                    Answer::Error(error) => Err(refused(error)),
                    _ => Err(nonsense()),
                };
            }
            if length > LONGEST_PIECE {
                return Err(nonsense());
            }
            self.left = length as usize;
        }
        if wire.read.is_empty() {
            wire.more().await.map_err(broke)?;
        }
        let part = wire.read.split_to(wire.read.len().min(self.left)).freeze();
        self.left -= part.len();
        Ok(Some(part))
    }
}

impl Wire {
    async fn ask(mut self, message: &ContentRequest) -> io::Result<(Self, Answer)> {
        let length = u32::try_from(message.encoded_len()).map_err(io::Error::other)?;
        let mut frame = BytesMut::from(&length.to_be_bytes()[..]);
        message.encode(&mut frame)?;
        self.socket.write_all_buf(&mut frame).await?;
        let answer = self.answer().await?;
        Ok((self, answer))
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        let length = self.length().await? as usize;
        if length > LONGEST_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.have(length).await?;
        let answer = ContentAnswer::decode(self.read.split_to(length))?;
        answer.what.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    async fn length(&mut self) -> io::Result<u32> {
        self.have(size_of::<u32>()).await?;
        Ok(self.read.get_u32())
    }

    async fn have(&mut self, bytes: usize) -> io::Result<()> {
        while self.read.len() < bytes {
            self.more().await?;
        }
        Ok(())
    }

    async fn more(&mut self) -> io::Result<()> {
        self.read.reserve(READ);
        match self.socket.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// What the guest would have answered a call with.
fn refused(error: ContentError) -> Status {
    let mut status = Status::new(Code::from(error.code), error.message);
    if let Ok(field) = MetadataValue::try_from(error.field)
        && !field.is_empty()
    {
        status.metadata_mut().insert(FIELD, field);
    }
    status
}

/// The connection to the guest broke.
fn broke(error: io::Error) -> Status {
    Status::from_error(Box::new(error))
}

fn nonsense() -> Status {
    Status::internal("envd answered what was not asked for")
}
