//! The output of processes, live.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Subscription};
use futures_util::{Stream, StreamExt};
use wrenn_entities::CapsuleId;
use wrenn_proto::envd::v1 as envd;

use super::{
    ExecInput, ProcessEvent, PtyResized, exec,
    input::selector,
    pty::{named, present_size},
};
use crate::{
    Error, Services,
    access::{Actor, Member, caller, services, while_allowed},
    bus::{Change, Received, Subscriber, Topic},
    error::parse_id,
    scalar::BigInt,
};

/// The first byte wanted of each stream; from the oldest byte still held where absent.
#[derive(InputObject, Default)]
pub struct OutputCursor {
    stdout: Option<BigInt>,
    stderr: Option<BigInt>,
    pty: Option<BigInt>,
}

impl From<OutputCursor> for envd::OutputCursor {
    fn from(cursor: OutputCursor) -> Self {
        Self {
            stdout: cursor.stdout.map(|at| at.0),
            stderr: cursor.stderr.map(|at| at.0),
            pty: cursor.pty.map(|at| at.0),
        }
    }
}

#[derive(Default)]
pub struct ProcessSubscription;

#[Subscription]
impl ProcessSubscription {
    /// Starts a process and follows it. It goes on when nobody follows any more; its standard input stays open for
    /// `writeStdin`.
    #[graphql(guard = "Member")]
    async fn exec(
        &self,
        ctx: &Context<'_>,
        input: ExecInput,
    ) -> Result<impl Stream<Item = Result<ProcessEvent, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let wire = exec::open(&services, &Actor::of(ctx)?, input, false).await?;
        Ok(while_allowed(services, caller(ctx)?.clone(), exec::events("Exec", wire)))
    }

    /// What is still held of a process's output from `after` on, then what comes, then its exit.
    #[graphql(guard = "Member")]
    async fn process_output(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        #[graphql(name = "selector")] of: String,
        after: Option<OutputCursor>,
    ) -> Result<impl Stream<Item = Result<ProcessEvent, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let id = parse_id("capsuleId", &capsule_id)?;
        let after = after.unwrap_or_default().into();
        let wire = exec::follow(&services, &Actor::of(ctx)?, id, selector(&of)?, after).await?;
        Ok(while_allowed(services, caller(ctx)?.clone(), exec::events("FollowProcess", wire)))
    }

    /// What is still held of a terminal's output from `after` on, then what comes, also new sizes, then its exit.
    #[graphql(guard = "Member")]
    async fn pty_output(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        tag: String,
        after: Option<BigInt>,
    ) -> Result<impl Stream<Item = Result<ProcessEvent, Error>> + use<>, Error> {
        let services = services(ctx)?.clone();
        let id = parse_id("capsuleId", &capsule_id)?;
        let after = envd::OutputCursor { pty: after.map(|at| at.0), ..Default::default() };
        let actor = Actor::of(ctx)?;
        let resizes = services.bus.subscribe(Topic::Terminals(id));
        let wire = exec::follow(&services, &actor, id, named(&tag)?, after).await?;
        let terminal = Terminal { services: services.clone(), actor, id, tag };
        let events = with_resizes(exec::events("FollowProcess", wire), resizes, terminal);
        Ok(while_allowed(services, caller(ctx)?.clone(), events))
    }
}

/// A terminal, and who watches it.
struct Terminal {
    services: Arc<Services>,
    actor: Actor,
    id: CapsuleId,
    tag: String,
}

/// The events of a terminal, and between them its new sizes; where one was missed, that which it has now. Like the
/// events, only made when they are asked for.
fn with_resizes(
    events: impl Stream<Item = Result<ProcessEvent, Error>> + Send,
    mut resizes: Subscriber,
    terminal: Terminal,
) -> impl Stream<Item = Result<ProcessEvent, Error>> + Send {
    async_stream::stream! {
        let mut events = std::pin::pin!(events);
        let mut told = None;
        loop {
            let next = tokio::select! {
                biased;
                resize = resizes.receive() => {
                    let Terminal { services, actor, id, tag } = &terminal;
                    let resized = match resize {
                        Received::Change(Change::TerminalResized { tag: of, columns, rows, .. }) if of == *tag => {
                            Some(PtyResized { columns, rows })
                        }
                        Received::Change(_) => None,
                        Received::Missed => {
                            let present = present_size(services, actor, *id, tag).await;
                            present.filter(|present| told.as_ref() != Some(present))
                        }
                    };
                    let Some(resized) = resized else { continue };
                    told = Some(resized);
                    Some(Ok(ProcessEvent::Resized(resized)))
                },
                event = events.next() => event,
            };
            let Some(event) = next else { break };
            yield event;
        }
    }
}
