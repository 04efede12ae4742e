//! From what went wrong to the gRPC status that says so. The codes map one to one onto those of the GraphQL API.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use wrenn_proto::agent::v1::Failure;
use wrenn_proto::{CAUSE, FIELD, IMAGE_MISSING};

use crate::capsule::CapsuleError;

/// The status of an error, with the field or the cause it is about in the metadata.
pub fn status(error: &CapsuleError) -> Status {
    match error {
        CapsuleError::NotFound(_) => Status::not_found(error.to_string()),
        CapsuleError::Invalid { field, .. } => with_field(Status::invalid_argument(error.to_string()), field),
        CapsuleError::NoSnapshot { .. } => with_field(Status::not_found(error.to_string()), "template"),
        CapsuleError::NoImage { .. } => {
            with_cause(with_field(Status::not_found(error.to_string()), "template"), IMAGE_MISSING)
        }
        CapsuleError::WrongState { cause, .. } => {
            let status = Status::failed_precondition(error.to_string());
            match cause {
                Some(cause) => with_cause(status, &cause.code),
                None => status,
            }
        }
        CapsuleError::TemplateTaken { .. } => {
            with_field(Status::already_exists(error.to_string()), "template")
        }
        CapsuleError::Refused { .. } | CapsuleError::NoImageOf { .. } => {
            Status::failed_precondition(error.to_string())
        }
        // As if that one had been asked for alone.
        CapsuleError::ForkFailed { source, .. } => {
            let cause = status(source);
            let message = format!("{error}: {}", cause.message());
            Status::with_metadata(cause.code(), message, cause.metadata().clone())
        }
        CapsuleError::Exhausted { .. } => Status::resource_exhausted(error.to_string()),
        CapsuleError::Destroyed(_) => with_cause(Status::failed_precondition(error.to_string()), "DESTROYED"),
        CapsuleError::Unheard(_) | CapsuleError::Stopping => Status::unavailable(error.to_string()),
        CapsuleError::Draining => with_cause(Status::unavailable(error.to_string()), "HOST_DRAINING"),
        CapsuleError::StillRunning(_) => Status::internal(error.to_string()),
        CapsuleError::GuestTimeout { .. } => Status::deadline_exceeded(error.to_string()),
        CapsuleError::VmmDied(_) => with_cause(Status::internal(error.to_string()), "VMM_DIED"),
        CapsuleError::Step { .. } => Status::new(Code::Internal, crate::report(error)),
    }
}

/// A status as an answer: that of one capsule among several of a call.
pub fn failure(status: &Status) -> Failure {
    let metadata = |key| {
        let value = status.metadata().get(key).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (field, cause) = (metadata(FIELD), metadata(CAUSE));
    Failure { code: status.code().into(), message: status.message().to_owned(), field, cause }
}

/// Names what ended a stream or stands in the way.
pub fn with_cause(mut status: Status, code: &str) -> Status {
    if let Ok(code) = MetadataValue::try_from(code) {
        status.metadata_mut().insert(CAUSE, code);
    }
    status
}

fn with_field(mut status: Status, field: &'static str) -> Status {
    status.metadata_mut().insert(FIELD, MetadataValue::from_static(field));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::{Cause, State};
    use crate::ids::CapsuleId;

    #[test]
    fn an_input_error_names_its_field() {
        let status = status(&CapsuleError::Invalid { field: "vcpus", message: "vcpus must be …".into() });
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.metadata().get(FIELD).unwrap(), "vcpus");
    }

    #[test]
    fn a_missing_image_is_told_from_a_missing_snapshot() {
        let template = || "tpl-0000000000000000000000002".to_owned();
        for (error, cause) in [
            (CapsuleError::NoImage { template: template() }, Some(IMAGE_MISSING)),
            (CapsuleError::NoSnapshot { template: template() }, None),
        ] {
            let status = status(&error);
            assert_eq!(status.code(), Code::NotFound);
            assert_eq!(status.metadata().get(FIELD).unwrap(), "template");
            assert_eq!(status.metadata().get(CAUSE).map(|cause| cause.to_str().unwrap()), cause);
            assert!(status.message().contains(&template()), "{}", status.message());
        }
    }

    #[test]
    fn a_failed_fork_says_which_copy_failed_and_why() {
        let source =
            CapsuleError::Exhausted { resource: "memory", wanted: "352 MiB".into(), free: "1 MiB".into() };
        let child = CapsuleId::from_u128(7);
        let status = status(&CapsuleError::ForkFailed { child, source: source.into() });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains(&child.to_string()), "{}", status.message());
        assert!(status.message().ends_with("352 MiB wanted, 1 MiB free"), "{}", status.message());
    }

    #[test]
    fn a_lost_capsule_names_its_cause() {
        let error = CapsuleError::WrongState {
            id: CapsuleId::from_u128(1),
            state: State::Stopped,
            cause: Some(Cause::new("VMM_DIED", "the VMM ended: killed by SIGKILL")),
        };
        let status = status(&error);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.metadata().get(CAUSE).unwrap(), "VMM_DIED");
        assert!(
            status.message().ends_with("is stopped: the VMM ended: killed by SIGKILL"),
            "{}",
            status.message()
        );
    }
}
