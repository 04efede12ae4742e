//! Processes: what they are given, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::graphql::{Client, Exec, Failure, ProcessEvent};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The longest a stream may be silent in these tests.
const SILENCE: Duration = Duration::from_secs(30);

/// The longest anything may take to become so.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `exec` cuts each of standard output and error at.
const EXEC_LIMIT: usize = 16 * 1024 * 1024;

pub async fn runs_programs_and_shell_lines(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let result = client.exec(Exec::argv(&id, &["echo", "$HOME;", "*", "a b"])).await?;
    ensure!(result.stdout()? == b"$HOME; * a b\n", "{result:?}");
    ensure!(result.exit_code == Some(0) && result.signal.is_none() && result.pid > 1, "{result:?}");

    let result = client.exec(Exec::shell(&id, "echo out | tr a-z A-Z; echo err >&2; exit 7")).await?;
    ensure!(result.stdout()? == b"OUT\n" && result.stderr()? == b"err\n", "{result:?}");
    ensure!(result.exit_code == Some(7) && result.stdout_encoding == "UTF8", "{result:?}");

    let result = client.exec(Exec::shell(&id, "kill -SEGV $$")).await?;
    ensure!(result.exit_code.is_none() && result.signal.as_deref() == Some("SIGSEGV"), "{result:?}");

    // What the shell does not find is the shell's affair.
    let result = client.exec(Exec::shell(&id, "no-such-program")).await?;
    ensure!(result.exit_code == Some(127), "{result:?}");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn environment_directory_and_user(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let line = "echo \"$(id -un) $USER $HOME $PWD $COLOUR\"; echo \"$PATH\"";
    let plain = client.exec(Exec::shell(&id, line)).await?.line()?;
    ensure!(plain.starts_with("root root /root /root \n/"), "{plain}");
    ensure!(plain.contains("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), "{plain}");

    let other = Exec::shell(&id, line)
        .with("user", "nobody")
        .with("cwd", "/tmp")
        .with("env", json!([{ "name": "COLOUR", "value": "blue = sky" }]));
    let other = client.exec(other).await?.line()?;
    ensure!(other.starts_with("nobody nobody /") && other.contains(" /tmp blue = sky\n"), "{other}");

    let by_number = client.exec(Exec::shell(&id, "id -u").with("user", "65534")).await?.line()?;
    ensure!(by_number == "65534", "{by_number}");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn environment_of_the_capsule(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let env = json!([{ "name": "WHERE", "value": "capsule" }, { "name": "ONLY", "value": "here" }]);
    let id = client.create(json!({ "env": env })).await?.id;
    let line = "echo $WHERE $ONLY";
    ensure!(client.sh(&id, line).await? == "capsule here");
    let overridden = Exec::shell(&id, line).with("env", json!([{ "name": "WHERE", "value": "request" }]));
    ensure!(client.exec(overridden).await?.line()? == "request here");
    client.pause(&id).await?;
    client.resume(&id).await?;
    ensure!(client.sh(&id, line).await? == "capsule here", "the environment was lost over a pause");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn standard_input(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let bytes: Vec<u8> = (0..=255).collect();
    let result = client.exec(Exec::argv(&id, &["cat"]).stdin(&bytes)).await?;
    ensure!(result.stdout()? == bytes, "input came back changed");
    // Without any, standard input ends at once.
    let result = client.exec(Exec::argv(&id, &["cat"])).await?;
    ensure!(result.stdout()?.is_empty() && result.exit_code == Some(0), "{result:?}");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn a_timeout_kills_the_whole_group(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let line = "echo begun; sleep 4321 & sleep 4321";
    let result = client.exec(Exec::shell(&id, line).with("timeoutSec", 2)).await?;
    ensure!(result.signal.as_deref() == Some("SIGKILL") && result.exit_code.is_none(), "{result:?}");
    ensure!(result.stdout()? == b"begun\n" && result.duration_ms >= 1900, "{result:?}");
    wait::until_true("no process of the group left", PATIENCE, async || {
        let found = client.sh(&id, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true").await?;
        Ok(!found.contains("sleep 4321"))
    })
    .await?;
    client.destroy(&id).await?;
    Ok(())
}

pub async fn background_processes_are_listed_and_signalled(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let line = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let (pid, tag) = client.start(Exec::shell(&id, line).with("tag", "patient")).await?;
    ensure!(tag == "patient");
    let mut stream = client.process_output(&id, "patient", None).await?;
    ensure!(stream.started().await? == (pid, "patient".to_owned()));
    let ready = stream.next_within(SILENCE).await?;
    ensure!(
        ready
            == Some(ProcessEvent::Output { stream: "STDOUT".into(), sequence: 0, data: b"ready\n".to_vec() }),
        "{ready:?}"
    );
    let process = listed(client, &id, pid).await?;
    ensure!(process["running"] == true && process["user"] == "root" && process["pty"] == false, "{process}");
    ensure!(process["command"] == line && process["exitCode"].is_null(), "{process}");

    client.signal(&id, &pid.to_string(), "SIGTERM").await?;
    // The shell may say on standard error that its `sleep` was terminated too.
    let rest = stream.collect(SILENCE).await?;
    ensure!(rest.stdout == b"got it\n" && rest.stdout_from == Some(6), "{rest:?}");
    ensure!(
        rest.exit == Some(ProcessEvent::Exited { exit_code: Some(3), signal: None, cause: None }),
        "{rest:?}"
    );
    let process = listed(client, &id, pid).await?;
    ensure!(process["running"] == false && process["exitCode"] == 3, "{process}");
    // What it said can still be read.
    let again = client.process_output(&id, "patient", None).await?.collect(SILENCE).await?;
    ensure!(again.stdout == b"ready\ngot it\n" && again.exit.is_some(), "{again:?}");

    let (pid, tag) = client.start(Exec::argv(&id, &["sleep", "1000"])).await?;
    client.signal(&id, &tag, "SIGKILL").await?;
    wait::until_true("a killed process listed as such", PATIENCE, async || {
        Ok(listed(client, &id, pid).await?["signal"] == "SIGKILL")
    })
    .await?;
    client.destroy(&id).await?;
    Ok(())
}

async fn listed(client: &Client, id: &str, pid: i64) -> Result<Value> {
    let processes = client.processes(id).await?;
    processes
        .into_iter()
        .find(|process| process["pid"] == pid)
        .with_context(|| format!("{pid} is not listed"))
}

pub async fn input_is_taken_exactly_once(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let (_, tag) = client.start(Exec::argv(&id, &["cat"])).await?;
    ensure!(client.write_stdin(&id, &tag, 0, b"hello ").await? == 6);
    ensure!(client.write_stdin(&id, &tag, 0, b"hello ").await? == 6, "a repeat counted");
    ensure!(client.write_stdin(&id, &tag, 3, b"lo world").await? == 11, "an overlap is new only at its end");
    let gap = client.write_stdin(&id, &tag, 100, b"lost").await.err().context("a gap was taken")?;
    let gap = gap.downcast::<Failure>()?;
    ensure!(["INVALID_INPUT", "FAILED_PRECONDITION", "CONFLICT"].contains(&gap.first().code()), "{gap}");
    client.close_stdin(&id, &tag).await?;
    client.close_stdin(&id, &tag).await?;
    let collected = client.process_output(&id, &tag, None).await?.collect(SILENCE).await?;
    ensure!(collected.stdout == b"hello world", "{collected:?}");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn output_that_is_not_text(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let result = client.exec(Exec::shell(&id, r"printf '\377\376\000end'; printf 'gr\303\274n' >&2")).await?;
    ensure!(result.stdout_encoding == "BASE64" && result.stdout()? == b"\xff\xfe\0end", "{result:?}");
    ensure!(result.stderr_encoding == "UTF8" && result.stderr()? == "grün".as_bytes(), "{result:?}");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn long_output_is_cut_and_said_so(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let line = format!("head -c {} /dev/zero | tr '\\0' x; echo kept >&2", EXEC_LIMIT + 1_000_000);
    let result = client.exec(Exec::shell(&id, &line)).await?;
    let stdout = result.stdout()?;
    ensure!(result.truncated && stdout.len() == EXEC_LIMIT, "{} bytes", stdout.len());
    ensure!(stdout.iter().all(|byte| *byte == b'x') && result.stderr()? == b"kept\n");
    ensure!(result.exit_code == Some(0), "cutting disturbed the process: {:?}", result.exit_code);
    let whole = client.exec(Exec::shell(&id, "head -c 3000000 /dev/zero")).await?;
    ensure!(!whole.truncated && whole.stdout()?.len() == 3_000_000, "a shorter output was cut");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn tags(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let (_, tag) = client.start(Exec::argv(&id, &["true"])).await?;
    let digits = tag.strip_prefix("proc-").with_context(|| format!("an unasked-for tag {tag}"))?;
    ensure!(digits.len() == 8 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{tag}");

    let sleeper = || Exec::argv(&id, &["sleep", "1000"]).with("tag", "unique");
    client.start(sleeper()).await?;
    let taken = client.start(sleeper()).await.err().context("two living processes with one tag")?;
    let taken = taken.downcast::<Failure>()?;
    ensure!(taken.first().code() == "CONFLICT", "{taken}");
    // A tag of digits would be a pid.
    let digits = client.start(sleeper().with("tag", "123")).await.err().context("a tag of digits")?;
    let digits = digits.downcast::<Failure>()?;
    ensure!(digits.first().code() == "INVALID_INPUT" && digits.first().field() == Some("tag"), "{digits}");

    client.signal(&id, "unique", "SIGKILL").await?;
    wait::until("the tag free again", PATIENCE, async || Ok(client.start(sleeper()).await.ok())).await?;
    client.destroy(&id).await?;
    Ok(())
}
