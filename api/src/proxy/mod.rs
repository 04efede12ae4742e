//! The way from outside to what listens on a port of a capsule.
//!
//! ```text
//! http://3000-cl-….capsules.example/a ─┐
//!                                      ├─▶ who may? ─▶ which host? ─▶ its agent, HTTP/1.1 over mutual TLS ─▶ the guest
//! http://wrenn.example/proxy/cl-…/3000/a ┘
//! ```
//! - HTTP/1.1 and what it is upgraded to, streamed both ways, only as fast as it is taken; nothing is held back.
//! - Connections to agents are kept in a pool of their own: whatever goes on here, calls to agents do not wait for it.
//! - What a visitor shows us (API key, token, cookie) is taken out of the request; a capsule never sees it.
//! - By path, a capsule's redirects and cookies are given the prefix, and what it says for the whole origin is left
//!   out; by name it has its own address and they stay.
//! - What cannot be carried is answered here, as a page for browsers and as JSON for programs, with the header [`ERROR`];
//!   an answer without it is the capsule's own.
//!
//! Pages that are reached by path have this server's origin all the same: their scripts may ask for whatever is at
//! other paths with the cookies of who looks at them, previews of other capsules among it, and share cookies and
//! storage with those. (They are not sandboxed: without an origin hardly any of them would work.) Where that matters,
//! give capsules a domain (`WRENN_PROXY_DOMAIN`) and turn paths off (`WRENN_PROXY_PATHS=false`).

mod activity;
mod address;
mod exchange;
mod head;
mod pool;
mod problem;
mod rewrite;
mod tunnel;
mod visitor;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request},
    response::Response,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wrenn_schema::{Services, access::RequestId};

pub use self::address::{Domain, NotADomain};
use self::{address::Asked, pool::Pool};
use crate::origin::Origin;

/// Header of a request between us and an agent: the capsule's id.
const CAPSULE: &str = "x-wrenn-capsule";
/// Header of a request between us and an agent: the port in the guest.
const PORT: &str = "x-wrenn-port";
/// Header of an answer that is not the capsule's own: why, as a stable code.
const ERROR: &str = "x-wrenn-error";

/// Marks an answer that is the capsule's: nothing is added to it, and its failures are not ours.
#[derive(Clone, Copy)]
pub(crate) struct FromCapsule;

/// What carries requests into capsules.
pub(crate) struct Proxy {
    services: Arc<Services>,
    pool: Pool,
    domain: Option<Domain>,
    /// Whether capsules are reached by path, too.
    paths: bool,
    /// Where clients reach this server.
    public_url: Origin,
    stop: CancellationToken,
    /// What goes on when its request is answered.
    tunnels: TaskTracker,
}

impl Proxy {
    pub(crate) fn new(
        services: &Arc<Services>,
        domain: Option<Domain>,
        paths: bool,
        public_url: Origin,
        stop: CancellationToken,
        tunnels: TaskTracker,
    ) -> Self {
        Self {
            services: services.clone(),
            pool: Pool::new(services),
            domain,
            paths,
            public_url,
            stop,
            tunnels,
        }
    }

    /// What of a capsule the request is for, if it is for one.
    pub(crate) fn asked(&self, request: &Request) -> Option<Asked> {
        address::asked(request, self.domain.as_ref(), self.paths)
    }

    /// Carries it there, and the answer back.
    pub(crate) async fn carry(&self, asked: Asked, mut request: Request) -> Response {
        let id = request.extensions().get::<RequestId>().cloned();
        let id = id.unwrap_or_else(crate::request_id::fresh);
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let reader = problem::Reader::of(request.headers());
        match self.exchange(&asked, &mut request, peer, &id).await {
            Ok(response) => response,
            Err(problem) => problem.answer(reader, &id),
        }
    }
}
