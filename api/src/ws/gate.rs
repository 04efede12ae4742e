use async_graphql::{Request, Response};
use futures_util::stream::BoxStream;
use wrenn_schema::access::{Credentials, RequestId};

/// Why a socket was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No credentials, or bad ones.
    Denied,
    /// They could not be checked.
    Unavailable,
}

/// What a later look at the credentials found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Valid,
    Revoked,
    /// They could not be checked this time.
    Unknown,
}

/// What the protocol engine needs from the rest of the server: who may come in, and what runs.
pub trait Gate: Clone + Send + Sync + 'static {
    /// Who was let in.
    type Access: Clone + Send + Sync + 'static;

    /// Checks the credentials of a new socket.
    fn admit(
        &self,
        credentials: Credentials,
    ) -> impl Future<Output = Result<Self::Access, Refused>> + Send + 'static;

    /// Checks them again.
    fn recheck(&self, access: Self::Access) -> impl Future<Output = Standing> + Send + 'static;

    /// Starts an operation. Dropping the stream ends it.
    fn execute(&self, access: Self::Access, id: RequestId, request: Request) -> BoxStream<'static, Response>;
}
