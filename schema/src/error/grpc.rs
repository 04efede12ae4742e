//! gRPC status → error, code by code.

use tonic::{Code as Grpc, Status, metadata::MetadataValue};
use wrenn_proto::{CAUSE, FIELD, agent::v1::Failure};

use super::{Code, Error, Refusal};

/// `extensions.cause` when the connection to the host agent broke in the middle.
const HOST_AGENT_LOST: &str = "HOST_AGENT_LOST";

fn metadata(status: &Status, key: &str) -> Option<String> {
    status.metadata().get(key).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

impl Error {
    /// What a host agent answered to `call`.
    ///
    /// A status with a source was made on this side, by the transport: the agent itself is out of reach.
    pub(crate) fn from_agent(call: &'static str, status: Status) -> Self {
        if std::error::Error::source(&status).is_some() && status.code() != Grpc::DeadlineExceeded {
            tracing::warn!(call, error = %Self::HostAgent { call, status: status.clone() }.chain(), "host agent lost");
            return Self::agent_lost();
        }
        let code = match status.code() {
            Grpc::NotFound => Code::NotFound,
            Grpc::AlreadyExists | Grpc::Aborted => Code::Conflict,
            Grpc::InvalidArgument | Grpc::OutOfRange => Code::InvalidInput,
            Grpc::FailedPrecondition => Code::FailedPrecondition,
            Grpc::ResourceExhausted => Code::ResourceExhausted,
            Grpc::Unavailable | Grpc::Cancelled => Code::Unavailable,
            Grpc::DeadlineExceeded => Code::DeadlineExceeded,
            Grpc::PermissionDenied => Code::Forbidden,
            // That the host does not accept the control plane is no fault of the caller's.
            Grpc::Ok
            | Grpc::Unknown
            | Grpc::Unimplemented
            | Grpc::Internal
            | Grpc::DataLoss
            | Grpc::Unauthenticated => return Self::HostAgent { call, status },
        };
        Self::Refused(Refusal {
            code,
            message: if status.message().is_empty() {
                "the host gave no reason".to_owned()
            } else {
                status.message().to_owned()
            },
            field: metadata(&status, FIELD),
            cause: metadata(&status, CAUSE),
        })
    }

    /// What a host agent answered for one capsule of several.
    pub(crate) fn of_one(call: &'static str, failure: Failure) -> Self {
        let Failure { code, message, field, cause } = failure;
        let mut status = Status::new(Grpc::from_i32(code), message);
        for (key, value) in [(FIELD, field), (CAUSE, cause)] {
            if !value.is_empty()
                && let Ok(value) = MetadataValue::try_from(value)
            {
                status.metadata_mut().insert(key, value);
            }
        }
        Self::from_agent(call, status)
    }

    pub(crate) fn agent_lost() -> Self {
        Self::unavailable("the connection to the capsule's host was lost").with_cause(HOST_AGENT_LOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_and_the_cause_come_along() {
        let mut status = Status::invalid_argument("no such directory");
        status.metadata_mut().insert(FIELD, "cwd".parse().expect("a value"));
        let error = Error::from_agent("exec", status);
        assert_eq!((error.code(), error.field()), (Code::InvalidInput, Some("cwd")));

        let mut status = Status::unavailable("the capsule was paused");
        status.metadata_mut().insert(CAUSE, "CAPSULE_PAUSED".parse().expect("a value"));
        let error = Error::from_agent("exec", status);
        assert_eq!((error.code(), error.cause()), (Code::Unavailable, Some("CAPSULE_PAUSED")));
    }

    #[test]
    fn one_capsule_fails_as_a_call_would() {
        let failure = Failure {
            code: Grpc::FailedPrecondition.into(),
            message: "the capsule is stopped".to_owned(),
            field: String::new(),
            cause: "VMM_DIED".to_owned(),
        };
        let error = Error::of_one("ports", failure);
        let shown = (error.code(), error.field(), error.cause());
        assert_eq!(shown, (Code::FailedPrecondition, None, Some("VMM_DIED")));
        assert_eq!(error.to_string(), "the capsule is stopped");
    }

    #[test]
    fn preconditions_and_conflicts_never_become_internal() {
        for (status, code) in [
            (Status::already_exists("a"), Code::Conflict),
            (Status::aborted("a"), Code::Conflict),
            (Status::failed_precondition("a"), Code::FailedPrecondition),
            (Status::resource_exhausted("a"), Code::ResourceExhausted),
            (Status::deadline_exceeded("a"), Code::DeadlineExceeded),
            (Status::not_found("a"), Code::NotFound),
            (Status::permission_denied("a"), Code::Forbidden),
            (Status::internal("a"), Code::Internal),
            (Status::unauthenticated("a"), Code::Internal),
        ] {
            assert_eq!(Error::from_agent("test", status).code(), code);
        }
    }

    #[test]
    fn a_broken_transport_is_a_lost_agent() {
        let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
        let error = Error::from_agent("exec", Status::from_error(Box::new(broken)));
        assert_eq!(error.code(), Code::Unavailable);
        assert_eq!(error.cause(), Some(HOST_AGENT_LOST));
    }
}
