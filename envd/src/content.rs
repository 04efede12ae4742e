//! The content of files, over connections of their own (`wrenn_proto::content` is the protocol).
//!
//! What a file contains never enters this process: the kernel moves it between socket and file, piece by piece. The
//! work on the file is done by a thread that has become the user, as all of it is; it goes on until the socket has
//! nothing more, or takes nothing more, and is then given back, so that a peer that stops holds no thread.

mod receive;
mod send;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tonic::Status;
use wrenn_proto::content::{BROKEN, PREAMBLE};
use wrenn_proto::envd::v1::content_answer::What as Answer;
use wrenn_proto::envd::v1::content_request::What as Asked;
use wrenn_proto::envd::v1::{ContentError, ContentRequest, FileEntry, ReadRequest, WriteStart};

use crate::access::Access;
use crate::files::FilesService;
use crate::files::write::Writing;
use receive::{NotReceived, Receiving};
use send::Sending;
use wire::Wire;

/// How long a peer that was told of an error may take to stop sending.
const LINGER: Duration = Duration::from_secs(5);

/// What carries content in and out.
#[derive(Debug, Clone)]
pub struct Content {
    pub access: Arc<Access>,
    pub files: FilesService,
}

/// Why there is no further exchange on a connection.
enum Over {
    /// The peer ended it, or it broke.
    Gone,
    /// The peer was told of an error while it may be sending.
    Refused,
}

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Whether a connection that begins so is one for content.
pub fn begins_with(first: u8) -> bool {
    PREAMBLE.first() == Some(&first)
}

impl Content {
    /// Serves one connection to its end.
    pub async fn serve(&self, stream: TcpStream) {
        // Every error here means that the connection is over, which the peer learns by itself.
        let wire = Wire::new(stream);
        let Ok(preamble) = wire.read_exact::<{ PREAMBLE.len() }>().await else { return };
        if preamble != *PREAMBLE {
            return;
        }
        loop {
            match self.exchange(&wire).await {
                Ok(()) => {}
                Err(Over::Gone) => return,
                Err(Over::Refused) => return wire.end_after(LINGER).await,
            }
        }
    }

    async fn exchange(&self, wire: &Wire) -> Result<(), Over> {
        let ContentRequest { token, what, .. } = wire.read_frame().await?;
        let admitted = self.access.admit_token(&token);
        match (admitted, what) {
            (Err(status), _) => Ok(wire.answer(error(&status)).await?),
            (Ok(()), Some(Asked::Read(request))) => self.read(wire, request).await,
            (Ok(()), Some(Asked::Write(start))) => self.write(wire, start).await,
            (Ok(()), None) => {
                let status = Status::invalid_argument("neither a read nor a write was asked for");
                Ok(wire.answer(error(&status)).await?)
            }
        }
    }

    async fn read(&self, wire: &Wire, request: ReadRequest) -> Result<(), Over> {
        let mut opened = match self.files.open(request.user, &request.path).await {
            Ok(opened) => opened,
            Err(status) => return Ok(wire.answer(error(&status)).await?),
        };
        wire.answer(Answer::Entry(std::mem::take(&mut opened.entry))).await?;
        let actor = opened.actor.clone();
        let sent = Sending::new(opened, request.offset, request.length).run(wire, &actor).await?;
        let Err(problem) = sent else { return Ok(()) };
        wire.write(&BROKEN.to_be_bytes()).await?;
        wire.answer(error(&problem.into())).await?;
        Err(Over::Refused)
    }

    async fn write(&self, wire: &Wire, start: WriteStart) -> Result<(), Over> {
        let writing = match self.files.begin(start).await {
            Ok(writing) => writing,
            Err(status) => return Ok(wire.answer(error(&status)).await?),
        };
        match self.receive(wire, writing).await? {
            Ok(entry) => Ok(wire.answer(Answer::Entry(entry)).await?),
            Err(status) => {
                wire.answer(error(&status)).await?;
                Err(Over::Refused)
            }
        }
    }

    async fn receive(&self, wire: &Wire, mut writing: Writing) -> Result<Result<FileEntry, Status>, Over> {
        let received = match wire.answer(Answer::Ready(Default::default())).await {
            Ok(()) => Receiving::default().run(wire, &mut writing).await,
            Err(_) => Err(NotReceived::BrokeOff),
        };
        match received {
            Ok(()) => Ok(writing.finish().await.map_err(Status::from)),
            Err(why) => {
                writing.abandon().await;
                match why {
                    NotReceived::BrokeOff => Err(Over::Gone),
                    NotReceived::TooLong(length) => {
                        let message = format!("a piece of {length} bytes is longer than a piece may be");
                        Ok(Err(Status::invalid_argument(message)))
                    }
                    NotReceived::File(problem) => Ok(Err(problem.into())),
                }
            }
        }
    }
}

/// As a call would be told.
fn error(status: &Status) -> Answer {
    let field = status.metadata().get(wrenn_proto::FIELD).and_then(|it| it.to_str().ok());
    Answer::Error(ContentError {
        code: status.code().into(),
        message: status.message().to_owned(),
        field: field.unwrap_or_default().to_owned(),
    })
}
