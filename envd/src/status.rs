//! From what went wrong to the gRPC status that says so.

use std::error::Error;
use std::io;

use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Status};

use crate::disk::GrowError;
use crate::identity::IdentityError;
use crate::input::InputError;
use crate::launch::{Invalid, LaunchError};
use crate::metrics::MetricsError;
use crate::output::BeyondEnd;
use crate::process::{AlreadyExited, StartError};
use crate::spawn::{SpawnError, Step};
use crate::table::TableError;

/// An error about one field of the request.
pub fn field_error(code: Code, field: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(wrenn_proto::FIELD, AsciiMetadataValue::from_static(field));
    status
}

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        field_error(Code::InvalidArgument, error.field, error.message)
    }
}

impl From<TableError> for Status {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Start(StartError::Launch(LaunchError::Invalid(invalid))) => invalid.into(),
            TableError::Start(StartError::Spawn(error)) => spawn_status(&error),
            TableError::Start(StartError::Channel(ref source)) => Self::new(code_of(source), chain(&error)),
            TableError::Start(StartError::Launch(LaunchError::Accounts(_))) => Self::internal(chain(&error)),
            TableError::TagInUse(_) => field_error(Code::AlreadyExists, "tag", error.to_string()),
            TableError::NotFound(_) => Self::not_found(error.to_string()),
            TableError::NoSelector => field_error(Code::InvalidArgument, "selector", error.to_string()),
        }
    }
}

impl From<BeyondEnd> for Status {
    fn from(error: BeyondEnd) -> Self {
        field_error(Code::OutOfRange, "after", error.to_string())
    }
}

impl From<InputError> for Status {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Closed { .. } => Self::failed_precondition(error.to_string()),
            InputError::Gap { .. } => field_error(Code::OutOfRange, "sequence", error.to_string()),
        }
    }
}

impl From<AlreadyExited> for Status {
    fn from(error: AlreadyExited) -> Self {
        Self::failed_precondition(error.to_string())
    }
}

impl From<IdentityError> for Status {
    fn from(error: IdentityError) -> Self {
        Self::internal(chain(&error))
    }
}

impl From<MetricsError> for Status {
    fn from(error: MetricsError) -> Self {
        Self::internal(chain(&error))
    }
}

impl From<GrowError> for Status {
    fn from(error: GrowError) -> Self {
        match &error {
            GrowError::NotExt4 => Self::failed_precondition(error.to_string()),
            GrowError::Kernel { source, .. } => Self::new(code_of(source), chain(&error)),
        }
    }
}

/// Whose fault it is that a child did not become the program.
fn spawn_status(error: &SpawnError) -> Status {
    use io::ErrorKind as Kind;
    let message = chain(error);
    let field = match (error.step, error.source.kind()) {
        (Step::WorkingDirectory, Kind::NotFound | Kind::PermissionDenied | Kind::NotADirectory) => "cwd",
        // Arguments and environment share one space.
        (Step::Program, Kind::ArgumentListTooLong) => {
            return field_error(Code::ResourceExhausted, "argv", message);
        }
        // Not permitted, no program, its interpreter missing, being written to, …
        (Step::Program, _) if code_of(&error.source) != Code::ResourceExhausted => "argv",
        _ => return Status::new(code_of(&error.source), message),
    };
    field_error(Code::InvalidArgument, field, message)
}

/// What ran out is ResourceExhausted, everything else our own fault.
fn code_of(error: &io::Error) -> Code {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::ENOSPC) => {
            Code::ResourceExhausted
        }
        _ => Code::Internal,
    }
}

/// The error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
