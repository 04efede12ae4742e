//! What can go wrong with a file call, and the status that says so.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use tonic::{Code, Status};

use crate::launch::{Invalid, LaunchError};
use crate::status::{chain, field_error};

/// More of a path is not repeated in a message, in bytes.
const SHOWN: usize = 512;

/// A path of a request, and the name of the field that it came in.
#[derive(Debug, Clone)]
pub struct Target {
    pub field: &'static str,
    /// Absolute.
    pub path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot {operation} `{path}`")]
    Kernel {
        operation: &'static str,
        path: String,
        field: &'static str,
        #[source]
        source: Errno,
    },
    #[error("`{path}` {problem}")]
    Unfit { path: String, field: &'static str, problem: Problem },
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("cannot look up the user")]
    Accounts(#[source] crate::accounts::AccountError),
    #[error("cannot become the user")]
    Become(#[source] io::Error),
    #[error("every file worker is held up by a file system that does not answer")]
    Busy,
    #[error("the work on the files ended early")]
    Lost(#[source] tokio::task::JoinError),
}

/// Why what lies at a path cannot be used for what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("names no entry of a directory")]
    NoName,
    #[error("is not a regular file")]
    NotRegular,
    #[error("is in the way")]
    InTheWay,
    #[error("lies on another file system")]
    OtherFileSystem,
    #[error("lies below the directory that is to be moved")]
    Below,
    #[error("is nested too deeply")]
    TooDeep,
    #[error("changed while it was being removed")]
    Changed,
    #[error("holds more than one answer can tell; ask for parts of it")]
    TooMany,
    #[error("holds more directories than one call can watch; watch parts of it")]
    TooManyToWatch,
    #[error("cannot be watched as well: there are too many watches already")]
    TooManyWatches,
    #[error("cannot be followed through a link that another user put into a directory open to all")]
    Planted,
}

impl Problem {
    fn code(self) -> Code {
        match self {
            Self::NoName | Self::Below => Code::InvalidArgument,
            Self::NotRegular | Self::OtherFileSystem | Self::TooDeep | Self::Changed => {
                Code::FailedPrecondition
            }
            Self::InTheWay => Code::AlreadyExists,
            Self::TooMany | Self::TooManyToWatch | Self::TooManyWatches => Code::ResourceExhausted,
            Self::Planted => Code::PermissionDenied,
        }
    }
}

impl Target {
    /// The same field, for a path that was found on the way.
    pub fn with(&self, path: impl Into<PathBuf>) -> Self {
        Self { field: self.field, path: path.into() }
    }

    /// For `map_err`: the kernel refused.
    pub fn cannot(&self, operation: &'static str) -> impl FnOnce(Errno) -> FileError + use<> {
        let (path, field) = (shown(&self.path), self.field);
        move |source| FileError::Kernel { operation, path, field, source }
    }

    pub fn is(&self, problem: Problem) -> FileError {
        FileError::Unfit { path: shown(&self.path), field: self.field, problem }
    }
}

fn shown(path: &Path) -> String {
    let mut text = path.to_string_lossy().into_owned();
    if text.len() > SHOWN {
        text.truncate(text.floor_char_boundary(SHOWN));
        text.push('…');
    }
    text
}

impl From<LaunchError> for FileError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Invalid(invalid) => Self::Invalid(invalid),
            LaunchError::Accounts(error) => Self::Accounts(error),
        }
    }
}

impl From<FileError> for Status {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Kernel { field, source, .. } => field_error(code_of(source), field, chain(&error)),
            FileError::Unfit { field, problem, .. } => field_error(problem.code(), field, error.to_string()),
            FileError::Invalid(invalid) => invalid.into(),
            FileError::Busy => Self::resource_exhausted(error.to_string()),
            FileError::Accounts(_) | FileError::Become(_) | FileError::Lost(_) => {
                Self::internal(chain(&error))
            }
        }
    }
}

/// As the contract of the `Files` service says.
fn code_of(error: Errno) -> Code {
    match error {
        Errno::ENOENT => Code::NotFound,
        Errno::EACCES | Errno::EPERM => Code::PermissionDenied,
        Errno::EEXIST | Errno::ENOTEMPTY => Code::AlreadyExists,
        Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::ELOOP
        | Errno::EROFS
        | Errno::EXDEV
        | Errno::EBUSY
        | Errno::ETXTBSY
        | Errno::EAGAIN
        | Errno::ESTALE => Code::FailedPrecondition,
        Errno::ENAMETOOLONG | Errno::EINVAL => Code::InvalidArgument,
        Errno::ENOSPC
        | Errno::EDQUOT
        | Errno::EFBIG
        | Errno::EMLINK
        | Errno::ENOMEM
        | Errno::EMFILE
        | Errno::ENFILE => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}
