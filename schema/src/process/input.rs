//! What a process is started with, checked.

use async_graphql::{ID, InputObject};
use wrenn_entities::CapsuleId;
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use super::mutation::{CALL, InputPayload};
use crate::{
    Error, Services,
    access::Actor,
    capsule::{reach::ask_agent, rules},
    error::parse_id,
    host::{answer, requested},
    scalar::{Base64, BigInt},
};

/// Bytes of standard input that one call takes; more goes through `writeStdin`.
pub(super) const STDIN: usize = 2 * 1024 * 1024;
/// Bytes of all arguments together, the kernel's own bound for them.
const ARGUMENTS: usize = 2 * 1024 * 1024;
const TAG: usize = 128;

#[derive(InputObject, Clone, Debug)]
pub struct EnvVarInput {
    pub(crate) name: String,
    pub(crate) value: String,
    /// Of a new capsule: its forks do not get the value unless they are asked to, and no snapshot keeps it.
    #[graphql(default_with = "Some(false)")]
    pub(crate) secret: Option<bool>,
}

#[derive(InputObject, Clone, Debug)]
pub struct ExecInput {
    /// Count as activity while it runs, even with no one attached (startProcess).
    pub(super) keep_awake: Option<bool>,
    pub(super) capsule_id: ID,
    /// Run by `/bin/sh -c`; or give `argv`.
    pub(super) command: Option<String>,
    pub(super) argv: Option<Vec<String>>,
    /// Absolute, or relative to the user's home; the home if absent.
    pub(super) cwd: Option<String>,
    pub(super) env: Option<Vec<EnvVarInput>>,
    /// A name or a numeric uid; the template's default if absent.
    pub(super) user: Option<String>,
    pub(super) stdin: Option<Base64>,
    /// The whole process group is killed after this; 0 = never.
    pub(super) timeout_sec: Option<i32>,
    /// A name of its own, unique among the living; `proc-` and eight digits if absent.
    pub(super) tag: Option<String>,
}

impl ExecInput {
    /// The capsule, and what its guest is told. `close_stdin`: nothing will follow what is given here.
    pub(super) fn check(self, close_stdin: bool) -> Result<(CapsuleId, envd::StartRequest), Error> {
        let capsule_id = parse_id("capsuleId", &self.capsule_id)?;
        let argv = match (self.command, self.argv) {
            (Some(command), None) if command.trim().is_empty() => {
                return Err(Error::invalid("command", "`command` is empty"));
            }
            (Some(command), None) => vec!["/bin/sh".to_owned(), "-c".to_owned(), command],
            (None, Some(argv)) if argv.first().is_none_or(String::is_empty) => {
                return Err(Error::invalid("argv", "`argv` begins with the program to run"));
            }
            (None, Some(argv)) => argv,
            _ => return Err(Error::invalid("command", "exactly one of `command` and `argv` is wanted")),
        };
        if argv.iter().map(String::len).sum::<usize>() > ARGUMENTS {
            return Err(Error::invalid("argv", format!("the arguments are larger than {ARGUMENTS} bytes")));
        }
        let env = self.env.unwrap_or_default();
        rules::env(&env)?;
        let stdin = self.stdin.unwrap_or_default().0;
        bounded_input("stdin", stdin.len())?;
        if let Some(tag) = &self.tag {
            check_tag(tag)?;
        }
        for (field, text) in argv
            .iter()
            .map(|text| ("argv", text))
            .chain(self.cwd.iter().map(|text| ("cwd", text)))
            .chain(self.user.iter().map(|text| ("user", text)))
        {
            if text.contains('\0') {
                return Err(Error::invalid(field, format!("`{field}` has a zero byte")));
            }
        }
        let request = envd::StartRequest {
            argv,
            cwd: self.cwd.unwrap_or_default(),
            env: env.into_iter().map(|var| envd::EnvVar { name: var.name, value: var.value }).collect(),
            user: self.user.unwrap_or_default(),
            tag: self.tag.unwrap_or_default(),
            stdin,
            close_stdin,
            timeout_sec: u32::try_from(rules::timeout(self.timeout_sec.unwrap_or(0))?).unwrap_or(0),
            pty: None,
            close_when_idle: false,
        };
        Ok((capsule_id, request))
    }
}

/// Writes to a process. A repeat is ignored by its sequence.
pub(super) async fn write_input(
    services: &Services,
    actor: &Actor,
    id: CapsuleId,
    input: envd::WriteInputRequest,
) -> Result<InputPayload, Error> {
    let message = agent::WriteInputRequest { capsule_id: id.to_string(), input: Some(input) };
    let written = ask_agent(services, actor, id, |mut client| {
        let request = requested(message.clone(), &actor.request_id);
        async move { answer("WriteInput", CALL, client.write_input(request)).await }
    });
    Ok(InputPayload { next_sequence: BigInt(written.await?.next_sequence) })
}

pub(super) fn bounded_input(field: &str, length: usize) -> Result<(), Error> {
    if length > STDIN {
        return Err(Error::invalid(
            field,
            format!("`{field}` takes {STDIN} bytes at most at once; send more with `writeStdin`"),
        ));
    }
    Ok(())
}

pub(super) fn check_tag(tag: &str) -> Result<(), Error> {
    if tag.is_empty()
        || tag.len() > TAG
        || tag.bytes().all(|byte| byte.is_ascii_digit())
        || tag.contains('\0')
    {
        return Err(Error::invalid("tag", format!("`tag` is 1 to {TAG} bytes long and not all digits")));
    }
    Ok(())
}

/// All digits is a pid, anything else a tag.
pub(super) fn selector(text: &str) -> Result<envd::Selector, Error> {
    use envd::selector::By;
    let by = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let pid = text
            .parse()
            .map_err(|_| Error::invalid("selector", format!("`{text}` is too large for a pid")))?;
        By::Pid(pid)
    } else if text.is_empty() || text.len() > TAG {
        return Err(Error::invalid("selector", format!("`selector` is a pid, or a tag of 1 to {TAG} bytes")));
    } else {
        By::Tag(text.to_owned())
    };
    Ok(envd::Selector { by: Some(by) })
}

#[cfg(test)]
mod tests {
    use wrenn_entities::id::TypedId;

    use super::*;

    fn input() -> ExecInput {
        ExecInput {
            keep_awake: None,
            capsule_id: CapsuleId::generate().to_string().into(),
            command: None,
            argv: None,
            cwd: None,
            env: None,
            user: None,
            stdin: None,
            timeout_sec: None,
            tag: None,
        }
    }

    #[test]
    fn a_line_goes_to_the_shell() {
        let (_, request) =
            ExecInput { command: Some("echo a".into()), ..input() }.check(true).expect("is fine");
        assert_eq!(request.argv, ["/bin/sh", "-c", "echo a"]);
        assert!(request.close_stdin);
    }

    #[test]
    fn each_mistake_names_its_field() {
        let argv = || Some(vec!["true".to_owned()]);
        let large = Base64(vec![0; STDIN + 1].into());
        for (field, input) in [
            ("command", input()),
            ("command", ExecInput { command: Some("a".into()), argv: argv(), ..input() }),
            ("command", ExecInput { command: Some("  ".into()), ..input() }),
            ("argv", ExecInput { argv: Some(Vec::new()), ..input() }),
            ("capsuleId", ExecInput { capsule_id: "tpl-1".into(), argv: argv(), ..input() }),
            ("tag", ExecInput { tag: Some("123".into()), argv: argv(), ..input() }),
            ("timeoutSec", ExecInput { timeout_sec: Some(-1), argv: argv(), ..input() }),
            ("stdin", ExecInput { stdin: Some(large), argv: argv(), ..input() }),
            ("cwd", ExecInput { cwd: Some("a\0".into()), argv: argv(), ..input() }),
        ] {
            assert_eq!(input.check(true).expect_err(field).field(), Some(field));
        }
    }

    #[test]
    fn selectors() {
        use envd::selector::By;
        assert_eq!(selector("42").expect("a pid").by, Some(By::Pid(42)));
        assert_eq!(selector("proc-1").expect("a tag").by, Some(By::Tag("proc-1".into())));
        assert!(selector("").is_err());
        assert!(selector("99999999999").is_err());
    }
}
