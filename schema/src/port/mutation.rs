//! Who may reach a port from outside.

use async_graphql::{Context, ID, Object, SimpleObject};
use chrono::{DateTime, Utc};
use futures_util::{FutureExt, future::BoxFuture};
use sea_orm::{DatabaseTransaction, EntityTrait, Set};
use wrenn_entities::{CapsuleId, public_port};

use super::url;
use crate::{
    Error,
    access::{Actor, Member, loaders, services},
    capsule::{CapsulePayload, find, revise::revise},
    error::parse_id,
    signing::{self, Grant, Signed},
};

/// A URL that opens one thing to whoever has it.
#[derive(SimpleObject)]
pub struct PreviewUrlPayload {
    url: String,
    expires_at: DateTime<Utc>,
}

#[derive(Default)]
pub struct PortMutation;

#[Object]
impl PortMutation {
    /// Lets anybody reach a port, or only members of the team again. It need not be open yet, and stays as it was set
    /// when the capsule is paused. Copies of the capsule have no public ports.
    #[graphql(guard = "Member")]
    async fn set_port_public(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        port: i32,
        public: bool,
    ) -> Result<CapsulePayload, Error> {
        let services = services(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let number = i32::from(url::port("port", port)?);
        let team_id = Actor::of(ctx)?.team_id;
        let row =
            revise(services, team_id, id, |step| step, |transaction| set(transaction, id, number, public))
                .await?;
        // At once here; elsewhere once the change is heard of.
        services.routes.forget(id);
        loaders(ctx)?.forget().await;
        Ok(CapsulePayload::new(row))
    }

    /// A URL with which a port is reached without an API key, until it expires, at most a week from now, or the key that
    /// it was made with is revoked. A browser that opens it once goes on by a cookie.
    #[graphql(guard = "Member")]
    async fn create_preview_url(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        port: i32,
        #[graphql(default = 3600)] expires_in_sec: i32,
    ) -> Result<PreviewUrlPayload, Error> {
        let (services, actor) = (services(ctx)?, Actor::of(ctx)?);
        let id = parse_id("capsuleId", &capsule_id)?;
        let port = url::port("port", port)?;
        let signed = Signed { by: actor.key()?, expires_at: signing::expiry(expires_in_sec)? };
        let capsule = find(&services.db, actor.team_id, id).await?.id;
        let token = services.url_key.sign(Grant::Port { capsule, port }, signed);
        let root = url::of_port(&services.config, capsule, port);
        Ok(PreviewUrlPayload { url: format!("{root}?{}={token}", url::TOKEN), expires_at: signed.expires_at })
    }
}

fn set(
    transaction: &DatabaseTransaction,
    capsule_id: CapsuleId,
    port: i32,
    public: bool,
) -> BoxFuture<'_, Result<(), Error>> {
    async move {
        if public {
            let row = public_port::ActiveModel { capsule_id: Set(capsule_id), port: Set(port) };
            // One that is public already stays so.
            public_port::Entity::insert(row)
                .on_conflict_do_nothing_on([public_port::Column::CapsuleId, public_port::Column::Port])
                .exec_without_returning(transaction)
                .await?;
        } else {
            public_port::Entity::delete_by_id((capsule_id, port)).exec(transaction).await?;
        }
        Ok(())
    }
    .boxed()
}
