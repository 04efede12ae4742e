//! Answers given before GraphQL is reached, in GraphQL's own shape.

use async_graphql::{ErrorExtensionValues, ServerError};
use axum::{
    Extension, Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use wrenn_schema::access::RequestId;

/// A request that is not carried out.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    errors: Vec<ServerError>,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        id: &RequestId,
        message: impl Into<String>,
    ) -> Self {
        let mut extensions = ErrorExtensionValues::default();
        extensions.set("code", code);
        extensions.set("requestId", id.0.as_str());
        let mut error = ServerError::new(message, None);
        error.extensions = Some(extensions);
        Self { status, errors: vec![error] }
    }

    /// `INVALID_INPUT` with the given status.
    pub(super) fn invalid(status: StatusCode, id: &RequestId, message: impl Into<String>) -> Self {
        Self::new(status, "INVALID_INPUT", id, message)
    }

    /// An error of the schema's own, outside of GraphQL.
    pub(super) fn from_schema(error: &wrenn_schema::Error, id: &RequestId) -> Self {
        let status = match error.code().as_str() {
            "UNAUTHENTICATED" => StatusCode::UNAUTHORIZED,
            "FORBIDDEN" => StatusCode::FORBIDDEN,
            "NOT_FOUND" => StatusCode::NOT_FOUND,
            "CONFLICT" | "FAILED_PRECONDITION" => StatusCode::CONFLICT,
            "RESOURCE_EXHAUSTED" => StatusCode::INSUFFICIENT_STORAGE,
            "UNAVAILABLE" => StatusCode::SERVICE_UNAVAILABLE,
            "DEADLINE_EXCEEDED" => StatusCode::GATEWAY_TIMEOUT,
            "INTERNAL" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        Self { status, errors: vec![error.to_graphql(id)] }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        /// Without `data`: nothing was executed.
        #[derive(serde::Serialize)]
        struct Body {
            errors: Vec<ServerError>,
        }
        (self.status, Json(Body { errors: self.errors })).into_response()
    }
}

pub(super) async fn not_found(Extension(id): Extension<RequestId>) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "NOT_FOUND", &id, "there is nothing at this path")
}

pub(super) async fn method_not_allowed(Extension(id): Extension<RequestId>) -> Refusal {
    Refusal::invalid(StatusCode::METHOD_NOT_ALLOWED, &id, "this path does not take this method")
}
