//! Guards, put next to the fields they protect.

use async_graphql::{Context, Guard, Result};

use super::{Caller, caller, key_caller};
use crate::Error;

/// Whoever belongs to a team: an API key.
pub(crate) struct Member;

#[async_trait::async_trait]
impl Guard for Member {
    async fn check(&self, ctx: &Context<'_>) -> Result<()> {
        key_caller(ctx)?;
        Ok(())
    }
}

/// An API key of the platform's own team.
pub(crate) struct PlatformAdmin;

#[async_trait::async_trait]
impl Guard for PlatformAdmin {
    async fn check(&self, ctx: &Context<'_>) -> Result<()> {
        if key_caller(ctx)?.is_platform_admin() {
            Ok(())
        } else {
            Err(Error::forbidden("only the platform's own team may do this").into())
        }
    }
}

/// The agent of a registered host.
pub(crate) struct HostAgent;

#[async_trait::async_trait]
impl Guard for HostAgent {
    async fn check(&self, ctx: &Context<'_>) -> Result<()> {
        match caller(ctx)? {
            Caller::Host(_) => Ok(()),
            Caller::Key(_) => Err(Error::forbidden("only the agent of a host may do this").into()),
            Caller::Anonymous => Err(Error::unauthenticated("the token of a host is wanted").into()),
        }
    }
}
