//! A file's content, sent only as fast as it is read.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use tonic::Status;
use wrenn_proto::envd::v1::read_response::Part;
use wrenn_proto::envd::v1::{FileEntry, FileKind, ReadResponse};

use crate::files::actor::Actor;
use crate::files::entry::kind;
use crate::files::error::{FileError, Problem, Target};

/// Bytes of one message.
const PIECE: u64 = wrenn_proto::PIECE as u64;

/// Opens a regular file for reading. Anything else is only looked at, never opened: that alone can wait for ever
/// (a pipe) or do something (a device).
///
/// # Errors
/// It is not there, not a regular file, or may not be read.
pub fn open_regular(target: &Target) -> Result<(File, FileStat), FileError> {
    let handle = openat(AT_FDCWD, &target.path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(target.cannot("open"))?;
    let stat = fstat(&handle).map_err(target.cannot("look at"))?;
    if kind(&stat) != FileKind::File {
        return Err(target.is(Problem::NotRegular));
    }
    let file = reopen(&handle, OFlag::O_RDONLY).map_err(target.cannot("read"))?;
    Ok((file, stat))
}

/// What the handle refers to, whatever has its name by now. A thread may always follow its own process's links.
fn reopen(handle: &OwnedFd, flags: OFlag) -> nix::Result<File> {
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    Ok(open(Path::new(&link), flags, Mode::empty())?.into())
}

/// One file that is being read.
#[derive(Debug)]
pub struct Reading {
    pub actor: Actor,
    pub target: Target,
    pub file: Arc<File>,
    /// Told first.
    pub entry: Option<FileEntry>,
    pub offset: u64,
    /// Bytes still wanted.
    pub wanted: u64,
}

impl Reading {
    /// The messages, each read only when it is asked for. Ends with the file or the range, or with an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<ReadResponse, Status>> + Send + 'static {
        futures_util::stream::unfold(Some(self), |reading| async move {
            let mut reading = reading?;
            match reading.next().await {
                Ok(None) => None,
                Ok(part) => Some((Ok(ReadResponse { part }), Some(reading))),
                Err(error) => Some((Err(error.into()), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Part>, FileError> {
        if let Some(entry) = self.entry.take() {
            return Ok(Some(Part::Entry(entry)));
        }
        if self.wanted == 0 {
            return Ok(None);
        }
        let (file, target, offset) = (Arc::clone(&self.file), self.target.clone(), self.offset);
        let length = usize::try_from(self.wanted.min(PIECE)).unwrap_or_default();
        // As the user too: some files of /proc and /sys ask again at each read.
        let data = self.actor.run(move || read_at(&file, offset, length, &target)).await?;
        let got = data.len() as u64;
        self.offset = self.offset.saturating_add(got);
        self.wanted = self.wanted.saturating_sub(got);
        Ok((got > 0).then_some(Part::Data(data)))
    }
}

/// Nothing at the end of the file or beyond it.
fn read_at(file: &File, offset: u64, length: usize, target: &Target) -> Result<Bytes, FileError> {
    // No file has a byte there, and the kernel would take the number for a negative one.
    if i64::try_from(offset.saturating_add(PIECE)).is_err() {
        return Ok(Bytes::new());
    }
    let mut buffer = BytesMut::zeroed(length);
    let got = loop {
        match file.read_at(&mut buffer, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
                return Err(target.cannot("read")(errno));
            }
            Ok(got) => break got,
        }
    };
    buffer.truncate(got);
    Ok(buffer.freeze())
}
