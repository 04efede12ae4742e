//! `runInNewCapsule`: a capsule for one program.

use std::sync::Arc;

use async_graphql::{Context, InputObject, Object, SimpleObject};
use wrenn_entities::{CapsuleId, capsule::Model};

use super::{
    EnvVarInput, ExecInput, HeldOutput,
    exec::{self, ExecResult},
};
use crate::{
    Error, Services,
    access::{Actor, Member, loaders, services},
    capsule::{
        Capsule, CreateCapsuleInput,
        create::create,
        operation::{Verb, carry_out},
    },
    scalar::Base64,
};

/// What runs, and in what.
#[derive(InputObject)]
pub struct RunInNewCapsuleInput {
    /// A plain `minimal` one if absent.
    capsule: Option<CreateCapsuleInput>,
    /// Run by `/bin/sh -c`; or give `argv`.
    command: Option<String>,
    argv: Option<Vec<String>>,
    /// Absolute, or relative to the user's home; the home if absent.
    cwd: Option<String>,
    env: Option<Vec<EnvVarInput>>,
    /// A name or a numeric uid; the template's default if absent.
    user: Option<String>,
    stdin: Option<Base64>,
    /// The whole process group is killed after this; 0 = never.
    timeout_sec: Option<i32>,
    /// Whether the capsule stays when the program has ended; otherwise it is destroyed, whatever became of the program
    /// and of whoever asked.
    #[graphql(default_with = "Some(false)")]
    keep: Option<bool>,
}

#[derive(SimpleObject)]
pub struct RunInNewCapsulePayload {
    result: ExecResult,
    /// As it is afterwards: stopped, unless it was to be kept.
    capsule: Capsule,
}

#[derive(Default)]
pub struct NewCapsuleMutation;

#[Object]
impl NewCapsuleMutation {
    /// Makes a capsule, runs a program in it to its end, and answers once; then the capsule goes, unless it is to be kept.
    #[graphql(guard = "Member", complexity = "exec::COMPLEXITY + child_complexity")]
    async fn run_in_new_capsule(
        &self,
        ctx: &Context<'_>,
        input: RunInNewCapsuleInput,
    ) -> Result<RunInNewCapsulePayload, Error> {
        let (services, actor) = (services(ctx)?, Actor::of(ctx)?);
        let keep = input.keep.unwrap_or(false);
        let program = |capsule: CapsuleId| ExecInput {
            keep_awake: None,
            capsule_id: capsule.to_string().into(),
            command: input.command.clone(),
            argv: input.argv.clone(),
            cwd: input.cwd.clone(),
            env: input.env.clone(),
            user: input.user.clone(),
            stdin: input.stdin.clone(),
            timeout_sec: input.timeout_sec,
            tag: None,
        };
        // What is wrong with the program is said before there is a capsule.
        program(CapsuleId(uuid::Uuid::nil())).check(true)?;
        let capsule = input.capsule.unwrap_or_default();
        let (row, disposal) = made(services, &actor, capsule, keep).await?;
        let result = exec::run(services, &actor, program(row.id), &HeldOutput::of(ctx)).await;
        let row = match disposal {
            Some(disposal) => disposal.carry_out().await,
            None => Ok(row),
        };
        // Why the program could not be run matters more than why its capsule is still there.
        let result = result?;
        loaders(ctx)?.forget().await;
        Ok(RunInNewCapsulePayload { result, capsule: row?.into() })
    }
}

/// Makes the capsule together with what makes it go: nobody can go away in between.
async fn made(
    services: &Arc<Services>,
    actor: &Actor,
    input: CreateCapsuleInput,
    keep: bool,
) -> Result<(Arc<Model>, Option<Disposal>), Error> {
    let (tracked, actor) = (services.clone(), actor.clone());
    services
        .run_tracked(async move {
            let row = create(&tracked, actor.clone(), input).await?;
            let disposal = (!keep).then(|| Disposal::of(&tracked, &actor, row.id));
            Ok((row, disposal))
        })
        .await
}

/// Destroys a capsule, also when nobody waits for it any more.
struct Disposal {
    services: Arc<Services>,
    actor: Actor,
    capsule: Option<CapsuleId>,
}

impl Disposal {
    fn of(services: &Arc<Services>, actor: &Actor, capsule: CapsuleId) -> Self {
        Self { services: services.clone(), actor: actor.clone(), capsule: Some(capsule) }
    }

    async fn carry_out(mut self) -> Result<Arc<Model>, Error> {
        let id = self.capsule.ok_or(Error::Context("capsule"))?;
        let gone = carry_out(&self.services, &self.actor, id, Verb::Destroy).await;
        if gone.is_ok() {
            self.capsule = None;
        }
        gone
    }
}

impl Drop for Disposal {
    fn drop(&mut self) {
        let Some(id) = self.capsule else { return };
        let (services, actor) = (self.services.clone(), self.actor.clone());
        self.services.tasks.spawn(async move {
            if let Err(error) = carry_out(&services, &actor, id, Verb::Destroy).await {
                tracing::warn!(capsule = %id, error = %error.chain(), "a capsule made for one program is left");
            }
        });
    }
}
