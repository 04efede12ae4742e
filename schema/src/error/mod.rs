//! The one error type of the schema, and how it becomes what a client sees.

mod extension;
mod grpc;

use std::fmt;

use async_graphql::{ErrorExtensionValues, ServerError};
use sea_orm::DbErr;
use wrenn_entities::IdError;

pub(crate) use self::extension::ErrorCodes;
use crate::{access::RequestId, host::AuthorityError};

/// What kind of failure it was: `extensions.code` of every GraphQL error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Unauthenticated,
    Forbidden,
    NotFound,
    Conflict,
    InvalidInput,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    DeadlineExceeded,
    Internal,
}

impl Code {
    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::Conflict => "CONFLICT",
            Self::InvalidInput => "INVALID_INPUT",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure with which the client is told what went wrong and, where it is about an input, in which field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    /// The input field, spelled as in the schema.
    pub field: Option<String>,
    /// A stable code of what lies behind it, as `HOST_AGENT_LOST`.
    pub cause: Option<String>,
}

/// Everything that can go wrong behind a field.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("a database statement failed")]
    Database(#[from] DbErr),
    #[error("the host agent failed in {call}")]
    HostAgent {
        call: &'static str,
        #[source]
        status: tonic::Status,
    },
    #[error("the certificate authority failed")]
    Authority(#[from] AuthorityError),
    /// A tracked task ended without an answer: it panicked.
    #[error("a task ended without an answer: {0}")]
    Task(String),
    /// The engine was not given what every operation is given.
    #[error("the request carries no {0}")]
    Context(&'static str),
}

impl Error {
    fn refused(code: Code, message: impl Into<String>) -> Self {
        Self::Refused(Refusal { code, message: message.into(), field: None, cause: None })
    }

    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::refused(Code::Unauthenticated, message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::refused(Code::Forbidden, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::refused(Code::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::refused(Code::Conflict, message)
    }

    pub fn failed_precondition(message: impl Into<String>) -> Self {
        Self::refused(Code::FailedPrecondition, message)
    }

    pub fn resource_exhausted(message: impl Into<String>) -> Self {
        Self::refused(Code::ResourceExhausted, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::refused(Code::Unavailable, message)
    }

    pub fn deadline_exceeded(message: impl Into<String>) -> Self {
        Self::refused(Code::DeadlineExceeded, message)
    }

    /// `field` is spelled as in the schema.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::refused(Code::InvalidInput, message).with_field(field)
    }

    /// The input field that the error is about.
    #[must_use]
    pub fn with_field(mut self, field: &str) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.field = Some(field.to_owned());
        }
        self
    }

    /// A stable code of what lies behind it.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<String>) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.cause = Some(cause.into());
        }
        self
    }

    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(refusal) => refusal.code,
            Self::Database(DbErr::ConnectionAcquire(_) | DbErr::Conn(_)) => Code::Unavailable,
            _ => Code::Internal,
        }
    }

    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => refusal.field.as_deref(),
            _ => None,
        }
    }

    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => refusal.cause.as_deref(),
            _ => None,
        }
    }

    /// The error with everything that led to it, for the log.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }

    /// What the client is shown. What is not for clients goes to the log under the request's id instead.
    #[must_use]
    pub fn to_graphql(&self, request_id: &RequestId) -> ServerError {
        let code = self.code();
        let message = match (self, code) {
            (Self::Refused(refusal), _) => refusal.message.clone(),
            (_, Code::Unavailable) => {
                tracing::error!(request_id = %request_id, error = %self.chain(), "the database is out of reach");
                "the database cannot be reached at the moment".to_owned()
            }
            _ => {
                tracing::error!(request_id = %request_id, error = %self.chain(), "a request failed");
                format!(
                    "something went wrong on the server; its log has the details under request {request_id}"
                )
            }
        };
        let mut extensions = ErrorExtensionValues::default();
        extensions.set("code", code.as_str());
        if let Some(field) = self.field() {
            extensions.set("field", field);
        }
        if let Some(cause) = self.cause() {
            extensions.set("cause", cause);
        }
        extensions.set("requestId", request_id.0.as_str());
        let mut error = ServerError::new(message, None);
        error.extensions = Some(extensions);
        error
    }
}

/// An id that a client gave in the given field.
pub(crate) fn parse_id<T: std::str::FromStr<Err = IdError>>(field: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error: IdError| Error::invalid(field, error.to_string()))
}
