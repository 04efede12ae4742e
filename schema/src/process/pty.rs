//! Terminals in capsules.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use wrenn_entities::CapsuleId;
use wrenn_proto::{
    agent::v1 as agent,
    envd::v1::{self as envd, selector::By},
};

use super::{
    EnvVarInput, ExecInput, Process, PtyResized,
    input::{bounded_input, check_tag, write_input},
    list::list,
    mutation::{CALL, InputPayload, named_by_host},
    pid,
};
use crate::{
    Error, Services,
    access::{Actor, Member, services},
    bus::Change,
    capsule::{
        self,
        reach::{agent_of, running_on},
        rules,
    },
    error::parse_id,
    host::{answer, requested},
    scalar::{Base64, BigInt},
};

/// What runs in a terminal when nobody says: the user's own shell.
const SHELL: &str = "exec \"${SHELL:-/bin/sh}\" -l";
const TERM: &str = "xterm-256color";
/// Columns, and rows, of a terminal.
const SIDE: std::ops::RangeInclusive<i32> = 1..=1000;

#[derive(InputObject)]
pub struct OpenPtyInput {
    capsule_id: ID,
    /// A name of its own, unique among the living; `proc-` and eight digits if absent.
    tag: Option<String>,
    /// Run by `/bin/sh -c`; the user's shell if absent.
    command: Option<String>,
    #[graphql(default_with = "Some(80)")]
    columns: Option<i32>,
    #[graphql(default_with = "Some(24)")]
    rows: Option<i32>,
    /// Absolute, or relative to the user's home; the home if absent.
    cwd: Option<String>,
    env: Option<Vec<EnvVarInput>>,
    /// A name or a numeric uid; the template's default if absent.
    user: Option<String>,
    /// Hang up when it has said nothing and nobody has followed it for two minutes.
    #[graphql(default_with = "Some(false)")]
    close_when_idle: Option<bool>,
}

/// A process with a terminal. One that was closed has no size any more: 0.
#[derive(SimpleObject)]
pub struct Pty {
    pid: i32,
    tag: String,
    columns: i32,
    rows: i32,
}

#[derive(SimpleObject)]
pub struct PtyPayload {
    pty: Pty,
}

fn size(columns: i32, rows: i32) -> Result<envd::PtySize, Error> {
    let side = |field: &str, value: i32| {
        rules::within(field, value, &SIDE).map(|value| u32::try_from(value).unwrap_or(1))
    };
    Ok(envd::PtySize { columns: side("columns", columns)?, rows: side("rows", rows)? })
}

/// A terminal is named by its tag only.
pub(super) fn named(tag: &str) -> Result<envd::Selector, Error> {
    check_tag(tag)?;
    Ok(envd::Selector { by: Some(By::Tag(tag.to_owned())) })
}

/// What a host says about the selector is about the tag here.
fn of_tag(error: Error) -> Error {
    if error.field() == Some("selector") { error.with_field("tag") } else { error }
}

impl OpenPtyInput {
    fn check(self) -> Result<(CapsuleId, envd::StartRequest), Error> {
        let size = size(self.columns.unwrap_or(80), self.rows.unwrap_or(24))?;
        let term = EnvVarInput { name: "TERM".to_owned(), value: TERM.to_owned(), secret: None };
        let process = ExecInput {
            keep_awake: None,
            capsule_id: self.capsule_id,
            command: Some(self.command.unwrap_or_else(|| SHELL.to_owned())),
            argv: None,
            cwd: self.cwd,
            env: Some(std::iter::once(term).chain(self.env.unwrap_or_default()).collect()),
            user: self.user,
            stdin: None,
            timeout_sec: None,
            tag: self.tag,
        };
        let (id, mut process) = process.check(false)?;
        process.pty = Some(size);
        process.close_when_idle = self.close_when_idle.unwrap_or(false);
        Ok((id, process))
    }
}

/// The process that has the tag.
async fn process_of(services: &Services, actor: &Actor, id: CapsuleId, tag: &str) -> Result<Process, Error> {
    let row = capsule::find(&services.db, actor.team_id, id).await?;
    let list = list(services, &actor.request_id, (running_on(&row)?, id)).await?;
    list.into_iter().find(|process| process.tag == tag && process.running).ok_or_else(|| {
        Error::not_found(format!("no process that runs has the tag `{tag}`")).with_field("tag")
    })
}

/// The size that a terminal has now, as far as its capsule can be asked.
pub(super) async fn present_size(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
    tag: &str,
) -> Option<PtyResized> {
    match process_of(services, actor, id, tag).await {
        Ok(process) => process.size,
        Err(error) => {
            tracing::debug!(capsule = %id, tag, error = %error.chain(), "the size of a terminal is not known");
            None
        }
    }
}

#[derive(Default)]
pub struct PtyMutation;

#[Object]
impl PtyMutation {
    /// Starts a process with a terminal and answers at once; follow it with `ptyOutput`.
    #[graphql(guard = "Member")]
    async fn open_pty(&self, ctx: &Context<'_>, input: OpenPtyInput) -> Result<PtyPayload, Error> {
        let actor = Actor::of(ctx)?;
        let (columns, rows) = (input.columns.unwrap_or(80), input.rows.unwrap_or(24));
        let (id, process) = input.check()?;
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::StartProcessRequest {
            capsule_id: id.to_string(),
            process: Some(process),
            keep_awake: false,
        };
        let started =
            answer("StartProcess", CALL, client.start_process(requested(message, &actor.request_id))).await?;
        let process = named_by_host(started.process)?;
        Ok(PtyPayload { pty: Pty { pid: pid(process.pid), tag: process.tag, columns, rows } })
    }

    /// `sequence` is the offset in bytes of `data` in the whole input: a repeat is ignored, a gap is refused.
    #[graphql(guard = "Member")]
    async fn write_pty(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        tag: String,
        sequence: BigInt,
        data: Base64,
    ) -> Result<InputPayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        bounded_input("data", data.0.len())?;
        let input =
            envd::WriteInputRequest { selector: Some(named(&tag)?), sequence: sequence.0, data: data.0 };
        write_input(services(ctx)?, &actor, id, input).await.map_err(of_tag)
    }

    /// Gives the terminal another size; what runs in it is told.
    #[graphql(guard = "Member")]
    async fn resize_pty(
        &self,
        ctx: &Context<'_>,
        capsule_id: ID,
        tag: String,
        columns: i32,
        rows: i32,
    ) -> Result<PtyPayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let pty = envd::ResizeRequest { selector: Some(named(&tag)?), size: Some(size(columns, rows)?) };
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::ResizePtyRequest { capsule_id: id.to_string(), pty: Some(pty) };
        let request = requested(message, &actor.request_id);
        answer("ResizePty", CALL, client.resize_pty(request)).await.map_err(of_tag)?;
        let resized = Change::TerminalResized { id, tag: tag.clone(), columns, rows };
        services(ctx)?.bus.publish(resized);
        let process = process_of(services(ctx)?, &actor, id, &tag).await?;
        Ok(PtyPayload { pty: Pty { pid: process.pid, tag, columns, rows } })
    }

    /// Hangs up: what runs in the terminal gets SIGHUP, as from a line that broke.
    #[graphql(guard = "Member")]
    async fn close_pty(&self, ctx: &Context<'_>, capsule_id: ID, tag: String) -> Result<PtyPayload, Error> {
        let actor = Actor::of(ctx)?;
        let id = parse_id("capsuleId", &capsule_id)?;
        let process = envd::SignalRequest { selector: Some(named(&tag)?), signal: "SIGHUP".to_owned() };
        let mut client = agent_of(services(ctx)?, &actor, id).await?;
        let message = agent::SignalProcessRequest { capsule_id: id.to_string(), process: Some(process) };
        let request = requested(message, &actor.request_id);
        let signalled =
            answer("SignalProcess", CALL, client.signal_process(request)).await.map_err(of_tag)?;
        let process = named_by_host(signalled.process)?;
        Ok(PtyPayload { pty: Pty { pid: pid(process.pid), tag, columns: 0, rows: 0 } })
    }
}

#[cfg(test)]
mod tests {
    use wrenn_entities::id::TypedId;

    use super::*;

    fn input() -> OpenPtyInput {
        OpenPtyInput {
            capsule_id: CapsuleId::generate().to_string().into(),
            tag: None,
            command: None,
            columns: None,
            rows: None,
            cwd: None,
            env: None,
            user: None,
            close_when_idle: None,
        }
    }

    #[test]
    fn a_shell_in_a_terminal_of_the_usual_size() {
        let own = EnvVarInput { name: "TERM".into(), value: "dumb".into(), secret: None };
        let (_, process) = OpenPtyInput { env: Some(vec![own]), ..input() }.check().expect("is fine");
        assert_eq!(process.argv, ["/bin/sh", "-c", SHELL]);
        assert_eq!(process.pty, Some(envd::PtySize { columns: 80, rows: 24 }));
        assert!(!process.close_stdin && !process.close_when_idle);
        let env: Vec<_> = process.env.iter().map(|var| var.value.as_str()).collect();
        assert_eq!(env, [TERM, "dumb"], "what is asked for comes last, so it counts");
        let (_, process) = OpenPtyInput { close_when_idle: Some(true), ..input() }.check().expect("is fine");
        assert!(process.close_when_idle);
    }

    #[test]
    fn each_mistake_names_its_field() {
        for (field, input) in [
            ("columns", OpenPtyInput { columns: Some(0), ..input() }),
            ("rows", OpenPtyInput { rows: Some(1001), ..input() }),
            ("tag", OpenPtyInput { tag: Some("7".into()), ..input() }),
            ("command", OpenPtyInput { command: Some(" ".into()), ..input() }),
        ] {
            assert_eq!(input.check().expect_err(field).field(), Some(field));
        }
        assert_eq!(named("").expect_err("is none").field(), Some("tag"));
    }
}
