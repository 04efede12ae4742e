use std::sync::Arc;

use async_graphql::{Request, Response};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use wrenn_schema::{
    Code, Error, HeldOutput,
    access::{Caller, Credentials, RequestId, authenticate, request_data},
};

use super::app::App;
use crate::{
    credentials,
    ws::{Gate, Refused, Standing},
};

/// Lets sockets into the schema by their API key.
#[derive(Clone)]
pub(super) struct SchemaGate(pub(super) Arc<App>);

impl Gate for SchemaGate {
    type Access = Caller;

    fn admit(
        &self,
        credentials: Credentials,
    ) -> impl Future<Output = Result<Caller, Refused>> + Send + 'static {
        let app = Arc::clone(&self.0);
        async move {
            if credentials::is_empty(&credentials) {
                return Err(Refused::Denied);
            }
            authenticate(&app.services, &credentials).await.map_err(|error| match error.code() {
                Code::Unauthenticated | Code::Forbidden => Refused::Denied,
                _ => Refused::Unavailable,
            })
        }
    }

    fn recheck(&self, access: Caller) -> impl Future<Output = Standing> + Send + 'static {
        let app = Arc::clone(&self.0);
        async move {
            match access.recheck(&app.services).await.map_err(|error| error.code()) {
                Ok(()) => Standing::Valid,
                Err(Code::Unauthenticated | Code::Forbidden) => Standing::Revoked,
                Err(_) => Standing::Unknown,
            }
        }
    }

    fn execute(&self, access: Caller, id: RequestId, mut request: Request) -> BoxStream<'static, Response> {
        if let Err(unusable) = self.0.persisted.resolve(&mut request) {
            let refused = Response::from_errors(vec![Error::from(unusable).to_graphql(&id)]);
            return stream::once(std::future::ready(refused)).boxed();
        }
        let held = HeldOutput::of_socket();
        let request = request_data(&self.0.services, request, access, id).data(held.clone());
        let held_until_sent = move |response| {
            let _held = &held;
            response
        };
        self.0.schema.execute_stream(request).map(held_until_sent).boxed()
    }
}
