//! Changing templates.

use async_graphql::{Context, ID, Object, SimpleObject};

use super::{Template, lifecycle};
use crate::{
    Error,
    access::{Actor, Member, loaders, services},
    error::parse_id,
};

#[derive(SimpleObject)]
pub struct TemplatePayload {
    pub(crate) template: Template,
}

#[derive(SimpleObject)]
pub struct DeleteTemplatePayload {
    deleted_id: ID,
}

#[derive(Default)]
pub struct TemplateMutation;

#[Object]
impl TemplateMutation {
    /// Deletes one of the team's own. Capsules made from it are not touched; its files go as soon as its host is there.
    #[graphql(guard = "Member")]
    async fn delete_template(&self, ctx: &Context<'_>, id: ID) -> Result<DeleteTemplatePayload, Error> {
        lifecycle::delete(services(ctx)?, Actor::of(ctx)?.team_id, parse_id("id", &id)?).await?;
        loaders(ctx)?.forget().await;
        Ok(DeleteTemplatePayload { deleted_id: id })
    }
}
