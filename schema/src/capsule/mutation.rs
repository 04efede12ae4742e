//! Changing capsules.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use wrenn_entities::capsule;

use super::{
    Capsule, EgressPolicyInput, create, fork,
    operation::{Verb, carry_out},
    revise, snapshot, timing,
};
use crate::{
    Error,
    access::{Actor, Member, loaders, services},
    error::parse_id,
    process::EnvVarInput,
    scalar::Labels,
    template::{Template, TemplatePayload},
};

#[derive(InputObject, Default)]
pub struct CreateCapsuleInput {
    /// Id or name; the platform's `minimal` if absent.
    pub(super) template: Option<String>,
    pub(super) name: Option<String>,
    pub(super) vcpus: Option<i32>,
    pub(super) memory_mib: Option<i32>,
    pub(super) disk_mib: Option<i32>,
    /// Paused after this long without activity; 0 = never, which is the default.
    pub(super) timeout_sec: Option<i32>,
    /// When it is paused, a request to one of its ports lets it go on; otherwise such requests are refused.
    #[graphql(default_with = "Some(false)")]
    pub(super) auto_resume: Option<bool>,
    /// For every process in it, after the template's.
    pub(super) env: Option<Vec<EnvVarInput>>,
    pub(super) labels: Option<Labels>,
    /// Everything outside may be reached if absent.
    pub(super) egress: Option<EgressPolicyInput>,
    /// A repeat with the same key and input answers with the same capsule.
    pub(super) idempotency_key: Option<String>,
}

#[derive(SimpleObject)]
pub struct CapsulePayload {
    capsule: Capsule,
}

impl CapsulePayload {
    pub(crate) fn new(row: Arc<capsule::Model>) -> Self {
        Self { capsule: row.into() }
    }
}

#[derive(SimpleObject)]
pub struct ForkPayload {
    /// All of the same moment.
    capsules: Vec<Capsule>,
}

#[derive(Default)]
pub struct CapsuleMutation;

#[Object]
impl CapsuleMutation {
    /// Makes a capsule and answers when it runs.
    #[graphql(guard = "Member")]
    async fn create_capsule(
        &self,
        ctx: &Context<'_>,
        input: CreateCapsuleInput,
    ) -> Result<CapsulePayload, Error> {
        payload(ctx, create::create(services(ctx)?, Actor::of(ctx)?, input).await?).await
    }

    /// Puts it to disk with everything in its memory. One that is paused stays so.
    #[graphql(guard = "Member")]
    async fn pause_capsule(&self, ctx: &Context<'_>, id: ID) -> Result<CapsulePayload, Error> {
        change(ctx, &id, Verb::Pause).await
    }

    /// Lets a paused one go on. One that is running stays so.
    #[graphql(guard = "Member")]
    async fn resume_capsule(&self, ctx: &Context<'_>, id: ID) -> Result<CapsulePayload, Error> {
        change(ctx, &id, Verb::Resume).await
    }

    /// Removes it with its disk and its memory, for good.
    #[graphql(guard = "Member")]
    async fn destroy_capsule(&self, ctx: &Context<'_>, id: ID) -> Result<CapsulePayload, Error> {
        change(ctx, &id, Verb::Destroy).await
    }

    /// Counts as activity.
    #[graphql(guard = "Member")]
    async fn ping_capsule(&self, ctx: &Context<'_>, id: ID) -> Result<CapsulePayload, Error> {
        payload(ctx, timing::ping(services(ctx)?, &Actor::of(ctx)?, parse_id("id", &id)?).await?).await
    }

    /// Sets after how long without activity it is paused; 0 = never.
    #[graphql(guard = "Member")]
    async fn set_capsule_timeout(
        &self,
        ctx: &Context<'_>,
        id: ID,
        timeout_sec: i32,
    ) -> Result<CapsulePayload, Error> {
        let id = parse_id("id", &id)?;
        payload(ctx, timing::set_timeout(services(ctx)?, &Actor::of(ctx)?, id, timeout_sec).await?).await
    }

    /// Gives it these labels in place of those that it has.
    #[graphql(guard = "Member")]
    async fn set_capsule_labels(
        &self,
        ctx: &Context<'_>,
        id: ID,
        labels: Labels,
    ) -> Result<CapsulePayload, Error> {
        let id = parse_id("id", &id)?;
        payload(ctx, revise::set_labels(services(ctx)?, &Actor::of(ctx)?, id, labels.0).await?).await
    }

    /// Makes a template of a running or paused capsule as it is at this moment, with everything in its memory. A
    /// running one stands still for milliseconds. `overwrite`: in place of the template that has the name.
    #[graphql(guard = "Member")]
    async fn snapshot_capsule(
        &self,
        ctx: &Context<'_>,
        id: ID,
        name: String,
        #[graphql(default_with = "Some(false)")] overwrite: Option<bool>,
        idempotency_key: Option<String>,
    ) -> Result<TemplatePayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("id", &id)?;
        let wish = snapshot::Wish::check(&actor, id, name, overwrite.unwrap_or(false), idempotency_key)?;
        let row = snapshot::snapshot(services(ctx)?, actor, wish).await?;
        loaders(ctx)?.forget().await;
        Ok(TemplatePayload { template: Template(row) })
    }

    /// Makes running copies of a running or paused capsule, all of this moment, all of them or none. They have its
    /// labels and its timeout and run on its host. `inheritSecrets`: with its secret environment too.
    #[graphql(guard = "Member")]
    async fn fork_capsule(
        &self,
        ctx: &Context<'_>,
        id: ID,
        #[graphql(default_with = "Some(1)")] count: Option<i32>,
        #[graphql(default_with = "Some(false)")] inherit_secrets: Option<bool>,
        idempotency_key: Option<String>,
    ) -> Result<ForkPayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("id", &id)?;
        let (count, inherit_secrets) = (count.unwrap_or(1), inherit_secrets.unwrap_or(false));
        let wish = fork::Wish::check(&actor, id, count, inherit_secrets, idempotency_key)?;
        let rows = fork::fork(services(ctx)?, actor, wish).await?;
        let loaders = loaders(ctx)?;
        loaders.forget().await;
        rows.iter().for_each(|row| loaders.announce_capsule(row));
        Ok(ForkPayload { capsules: rows.into_iter().map(Capsule::from).collect() })
    }
}

async fn change(ctx: &Context<'_>, id: &ID, verb: Verb) -> Result<CapsulePayload, Error> {
    payload(ctx, carry_out(services(ctx)?, &Actor::of(ctx)?, parse_id("id", id)?, verb).await?).await
}

/// What a field before this one has read may have changed since.
async fn payload(ctx: &Context<'_>, row: Arc<capsule::Model>) -> Result<CapsulePayload, Error> {
    loaders(ctx)?.forget().await;
    Ok(CapsulePayload::new(row))
}
