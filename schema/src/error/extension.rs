//! The engine's extension that gives every error of every response its code.

use std::{
    any::TypeId,
    sync::{Arc, OnceLock},
};

use async_graphql::{
    ErrorExtensionValues, Request, Response, ServerError, ServerResult,
    extensions::{
        Extension, ExtensionContext, ExtensionFactory, NextPrepareRequest, NextRequest, NextSubscribe,
    },
};
use futures_util::{StreamExt, stream::BoxStream};

use super::{Code, Error};
use crate::{access::RequestId, document};

/// Turns [`Error`]s into what clients see, and marks what the engine itself refuses (syntax, validation, limits), and
/// what is refused before it sees it, as `INVALID_INPUT`.
pub(crate) struct ErrorCodes;

impl ExtensionFactory for ErrorCodes {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(PerRequest { id: Arc::default() })
    }
}

struct PerRequest {
    id: Arc<OnceLock<RequestId>>,
}

#[async_trait::async_trait]
impl Extension for PerRequest {
    async fn prepare_request(
        &self,
        ctx: &ExtensionContext<'_>,
        mut request: Request,
        next: NextPrepareRequest<'_>,
    ) -> ServerResult<Request> {
        let id =
            request.data.get(&TypeId::of::<RequestId>()).and_then(|data| data.downcast_ref::<RequestId>());
        if let Some(id) = id {
            // Only ever set here, once a request.
            let _ = self.id.set(id.clone());
        }
        document::check(&mut request)?;
        next.run(ctx, request).await
    }

    async fn request(&self, ctx: &ExtensionContext<'_>, next: NextRequest<'_>) -> Response {
        finish(next.run(ctx).await, &self.id)
    }

    fn subscribe<'s>(
        &self,
        ctx: &ExtensionContext<'_>,
        stream: BoxStream<'s, Response>,
        next: NextSubscribe<'_>,
    ) -> BoxStream<'s, Response> {
        let id = self.id.clone();
        next.run(ctx, stream).map(move |response| finish(response, &id)).boxed()
    }
}

fn finish(mut response: Response, id: &OnceLock<RequestId>) -> Response {
    if !response.errors.is_empty() {
        let id = id.get_or_init(|| RequestId("unknown".to_owned()));
        for error in &mut response.errors {
            translate(error, id);
        }
    }
    response
}

fn translate(error: &mut ServerError, id: &RequestId) {
    if let Some(source) = error.source::<Error>() {
        let shown = source.to_graphql(id);
        error.message = shown.message;
        error.extensions = shown.extensions;
        return;
    }
    let extensions = error.extensions.get_or_insert_with(ErrorExtensionValues::default);
    if extensions.get("code").is_none() {
        extensions.set("code", Code::InvalidInput.as_str());
    }
    extensions.set("requestId", id.0.as_str());
    if extensions.get("field").is_none()
        && let Some(field) = refused_argument(&error.message)
    {
        extensions.set("field", field);
    }
}

/// The innermost field that the engine's validation complains of: `Invalid value for argument "input.memoryMib", …`.
fn refused_argument(message: &str) -> Option<String> {
    let path = message.strip_prefix("Invalid value for argument \"")?.split('"').next()?;
    path.rsplit('.').find(|part| part.parse::<usize>().is_err()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::refused_argument;

    #[test]
    fn the_field_is_found_in_what_the_engine_says() {
        let message = "Invalid value for argument \"input.env.0.value\", expected type \"String\"";
        assert_eq!(refused_argument(message).as_deref(), Some("value"));
        assert_eq!(refused_argument("Unknown field \"x\" on type \"Query\"."), None);
    }
}
