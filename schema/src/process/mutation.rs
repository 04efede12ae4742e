//! Running processes, and talking to those that run.

use std::time::Duration;

use async_graphql::{Context, Enum, ID, Object, SimpleObject};
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use super::{
    ExecInput, HeldOutput, Process,
    exec::{self, ExecResult},
    input::{bounded_input, selector, write_input},
};
use crate::{
    Error,
    access::{Actor, Member, services},
    capsule::reach::{agent_of, ask_agent},
    error::parse_id,
    host::{answer, requested},
    scalar::{Base64, BigInt},
};

pub(super) const CALL: Duration = Duration::from_secs(30);

#[derive(SimpleObject)]
pub struct ProcessPayload {
    process: Process,
}

/// The sequence that the next input must carry.
#[derive(SimpleObject)]
pub struct InputPayload {
    pub(super) next_sequence: BigInt,
}

#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    #[graphql(name = "SIGHUP")]
    Hup,
    #[graphql(name = "SIGINT")]
    Int,
    #[graphql(name = "SIGQUIT")]
    Quit,
    #[graphql(name = "SIGKILL")]
    Kill,
    #[graphql(name = "SIGUSR1")]
    Usr1,
    #[graphql(name = "SIGUSR2")]
    Usr2,
    #[graphql(name = "SIGTERM")]
    Term,
    #[graphql(name = "SIGCONT")]
    Cont,
    #[graphql(name = "SIGSTOP")]
    Stop,
    #[graphql(name = "SIGWINCH")]
    Winch,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Hup => "SIGHUP",
            Self::Int => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Kill => "SIGKILL",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
            Self::Term => "SIGTERM",
            Self::Cont => "SIGCONT",
            Self::Stop => "SIGSTOP",
            Self::Winch => "SIGWINCH",
        }
    }
}

/// The process of an answer that always has one; a host that leaves it out is broken.
pub(super) fn named_by_host(process: Option<envd::Process>) -> Result<envd::Process, Error> {
    process.ok_or_else(|| Error::Task("the host named no process".to_owned()))
}

fn payload(process: Option<envd::Process>) -> Result<ProcessPayload, Error> {
    Ok(ProcessPayload { process: named_by_host(process)?.into() })
}

#[derive(Default)]
pub struct ProcessMutation;

#[Object]
impl ProcessMutation {
    /// Runs to the end and answers once.
    #[graphql(guard = "Member", complexity = "exec::COMPLEXITY + child_complexity")]
    async fn exec(&self, ctx: &Context<'_>, input: ExecInput) -> Result<ExecResult, Error> {
        exec::run(services(ctx)?, &Actor::of(ctx)?, input, &HeldOutput::of(ctx)).await
    }

    /// Starts and answers at once; follow it with `processOutput`.
    #[graphql(guard = "Member")]
    async fn start_process(&self, ctx: &Context<'_>, input: ExecInput) -> Result<ProcessPayload, Error> {
        let actor = Actor::of(ctx)?;
        let keep_awake = input.keep_awake.unwrap_or(false);
        let (id, process) = input.check(false)?;
        let message =
            agent::StartProcessRequest { capsule_id: id.to_string(), process: Some(process), keep_awake };
        // Of what is refused nothing was started.
        let started = ask_agent(services(ctx)?, &actor, id, |mut client| {
            let message = requested(message.clone(), &actor.request_id);
            async move { answer("StartProcess", CALL, client.start_process(message)).await }
        })
        .await?;
        payload(started.process)
    }

    /// `selector`: all digits is a pid, anything else a tag. Goes to the whole process group.
    #[graphql(guard = "Member")]
    async fn signal_process(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        #[graphql(name = "selector")] of: String,
        #[graphql(default_with = "Signal::Term")] signal: Signal,
    ) -> Result<ProcessPayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let process =
            envd::SignalRequest { selector: Some(selector(&of)?), signal: signal.name().to_owned() };
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::SignalProcessRequest { capsule_id: id.to_string(), process: Some(process) };
        let signalled =
            answer("SignalProcess", CALL, client.signal_process(requested(message, &actor.request_id)))
                .await?;
        payload(signalled.process)
    }

    /// `sequence` is the offset in bytes of `data` in the whole input: a repeat is ignored, a gap is refused.
    #[graphql(guard = "Member")]
    async fn write_stdin(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        #[graphql(name = "selector")] of: String,
        sequence: BigInt,
        data: Base64,
    ) -> Result<InputPayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        bounded_input("data", data.0.len())?;
        let input =
            envd::WriteInputRequest { selector: Some(selector(&of)?), sequence: sequence.0, data: data.0 };
        write_input(services(ctx)?, &actor, id, input).await
    }

    /// End of file on its standard input.
    #[graphql(guard = "Member")]
    async fn close_stdin(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        #[graphql(name = "selector")] of: String,
    ) -> Result<InputPayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let input = envd::CloseInputRequest { selector: Some(selector(&of)?) };
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::CloseInputRequest { capsule_id: id.to_string(), input: Some(input) };
        let closed =
            answer("CloseInput", CALL, client.close_input(requested(message, &actor.request_id))).await?;
        Ok(InputPayload { next_sequence: BigInt(closed.next_sequence) })
    }
}
