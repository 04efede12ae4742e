use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use super::envelope::around;
use crate::proxy::Proxy;

/// What such requests are counted under.
const LABEL: &str = "proxy";

/// Requests for a capsule go there; nothing that is this server's own, no header and no page, comes near them.
pub(super) async fn divert(State(proxy): State<Arc<Proxy>>, request: Request, next: Next) -> Response {
    match proxy.asked(&request) {
        Some(asked) => {
            around(LABEL.to_owned(), request, |request| async move { proxy.carry(asked, request).await })
                .await
        }
        None => next.run(request).await,
    }
}
