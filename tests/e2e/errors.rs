//! Bad input: each has its own code, names its field, says something, and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::graphql::{Client, Exec, Failure, GraphqlError};
use wrenn_tests::stack::Stack;

const CREATE: &str =
    "mutation($input: CreateCapsuleInput!) { createCapsule(input: $input) { capsule { id } } }";

/// An id of a capsule as it could be, but is not.
const NOBODY: &str = "cl-0000000000000000000000001";

/// The longest that a refusal may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an error must say: its code, and the input field it is about.
fn expect(failure: &Failure, code: &str, field: Option<&str>) -> Result<()> {
    let error: &GraphqlError = failure.first();
    ensure!(error.code() == code, "{code} was expected, not {error}");
    ensure!(field.is_none() || error.field() == field, "field {field:?} was expected: {error}");
    ensure!(error.message.len() > 5, "a message that says nothing: {error}");
    Ok(())
}

async fn failure_of<T>(what: &str, outcome: impl Future<Output = Result<T>>) -> Result<Failure> {
    let outcome = tokio::time::timeout(PATIENCE, outcome).await.with_context(|| format!("{what} hangs"))?;
    let error = outcome.err().with_context(|| format!("{what} was let through"))?;
    error.downcast::<Failure>().with_context(|| format!("{what} failed in another way"))
}

pub async fn bad_input_changes_nothing(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let mark = json!({ "test": "bad-input" });
    let cases: [(Value, &str, Option<&str>); 14] = [
        (json!({ "template": "no-such-template" }), "NOT_FOUND", Some("template")),
        (json!({ "template": "tpl-000000000000000000000zzzz" }), "NOT_FOUND", Some("template")),
        (json!({ "template": "../../etc" }), "NOT_FOUND", Some("template")),
        (json!({ "template": NOBODY }), "INVALID_INPUT", Some("template")),
        (json!({ "vcpus": 0 }), "INVALID_INPUT", Some("vcpus")),
        (json!({ "vcpus": -1 }), "INVALID_INPUT", Some("vcpus")),
        (json!({ "memoryMib": 1024 * 1024 }), "INVALID_INPUT", Some("memoryMib")),
        (json!({ "memoryMib": 0 }), "INVALID_INPUT", Some("memoryMib")),
        (json!({ "diskMib": 0 }), "INVALID_INPUT", Some("diskMib")),
        (json!({ "timeoutSec": -5 }), "INVALID_INPUT", Some("timeoutSec")),
        (json!({ "name": "Not A Name!" }), "INVALID_INPUT", Some("name")),
        (json!({ "env": [{ "name": "A=B", "value": "" }] }), "INVALID_INPUT", Some("env")),
        (json!({ "labels": { "": "empty" } }), "INVALID_INPUT", Some("labels")),
        (json!({ "labels": "not a map" }), "INVALID_INPUT", None),
    ];
    for (mut input, code, field) in cases {
        if input.get("labels").is_none() {
            input["labels"] = mark.clone();
        }
        let refused = client.refused(CREATE, json!({ "input": input })).await?;
        expect(&refused, code, field).with_context(|| input.to_string())?;
    }
    let left = client.capsules(json!({ "labels": mark })).await?;
    ensure!(left.is_empty(), "refused requests left rows behind: {left:?}");

    let id = client.create(json!({})).await?.id;
    let before = client.capsule(&id).await?;
    let cases = [
        (Exec::shell(&id, "true").with("argv", json!(["true"])), "command"),
        (Exec::argv(&id, &[]), "argv"),
        (Exec::shell(&id, "true").with("timeoutSec", -1), "timeoutSec"),
        (Exec::shell(&id, "true").with("stdin", "not base64!"), "stdin"),
        (Exec::shell(&id, "true").with("user", "nobody-knows"), "user"),
        (Exec::shell(&id, "true").with("cwd", "/no/such/directory"), "cwd"),
        (Exec::shell(&id, "true").with("env", json!([{ "name": "", "value": "x" }])), "env"),
    ];
    for (exec, field) in cases {
        let shown = exec.input().to_string();
        let refused = failure_of(&shown, client.exec(exec)).await?;
        // What a scalar refuses is refused before any field of ours is looked at.
        let field = (field != "stdin").then_some(field);
        expect(&refused, "INVALID_INPUT", field).with_context(|| shown)?;
    }
    expect(
        &failure_of("a timeout below zero", client.set_timeout(&id, -1)).await?,
        "INVALID_INPUT",
        Some("timeoutSec"),
    )?;
    let after = client.capsule(&id).await?;
    ensure!(
        before.as_ref().map(|c| (&c.state, c.timeout_sec))
            == after.as_ref().map(|c| (&c.state, c.timeout_sec)),
        "{before:?} became {after:?}"
    );
    client.destroy(&id).await?;
    Ok(())
}

pub async fn templates_without_an_image_say_what_to_do(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let mark = json!({ "test": "no-image" });
    // Among the assets there may be an image of it, on the hosts of a stack there is none.
    let input = json!({ "template": "python", "labels": mark });
    let refused = client.refused(CREATE, json!({ "input": input })).await?;
    expect(&refused, "FAILED_PRECONDITION", Some("template"))?;
    let error = refused.first();
    ensure!(error.cause() == Some("IMAGE_MISSING"), "{error}");
    ensure!(error.message.contains("`wrenn-rootfs build python`"), "{error}");
    let left = client.capsules(json!({ "labels": mark })).await?;
    ensure!(left.is_empty(), "a refused request left rows behind: {left:?}");
    Ok(())
}

pub async fn ids_of_other_kinds_are_refused(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let template = client.run("{ template(name: \"minimal\") { id } }", json!({})).await?;
    let template = template["template"]["id"].as_str().context("the template's id")?.to_owned();
    for id in [template.as_str(), "cl-", "cl-zzzzzzzzzzzzzzzzzzzzzzzzz", "17", ""] {
        for mutation in ["pauseCapsule", "resumeCapsule", "destroyCapsule", "pingCapsule"] {
            let query = format!("mutation($id: ID!) {{ {mutation}(id: $id) {{ capsule {{ id }} }} }}");
            let refused = client.refused(&query, json!({ "id": id })).await?;
            expect(&refused, "INVALID_INPUT", Some("id")).with_context(|| format!("{mutation} {id:?}"))?;
        }
        let refused = failure_of(id, client.exec(Exec::shell(id, "true"))).await?;
        expect(&refused, "INVALID_INPUT", Some("capsuleId")).with_context(|| format!("exec in {id:?}"))?;
    }
    // The right kind, but nothing there.
    expect(&failure_of("pausing nothing", client.pause(NOBODY)).await?, "NOT_FOUND", None)?;
    ensure!(client.capsule(NOBODY).await?.is_none());
    Ok(())
}

pub async fn paused_capsules_run_nothing(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.pause(&id).await?;
    let exec = || Exec::shell(&id, "true");
    expect(&failure_of("exec", client.exec(exec())).await?, "FAILED_PRECONDITION", None)?;
    expect(&failure_of("startProcess", client.start(exec())).await?, "FAILED_PRECONDITION", None)?;
    expect(
        &failure_of("signalProcess", client.signal(&id, "1", "SIGTERM")).await?,
        "FAILED_PRECONDITION",
        None,
    )?;
    let stream =
        failure_of("the subscription exec", async { client.exec_stream(exec()).await?.next().await });
    expect(&stream.await?, "FAILED_PRECONDITION", None)?;
    let follow = async { client.process_output(&id, "1", None).await?.next().await };
    expect(&failure_of("processOutput", follow).await?, "FAILED_PRECONDITION", None)?;
    ensure!(client.capsule(&id).await?.context("the capsule")?.state == "PAUSED");
    client.destroy(&id).await?;
    Ok(())
}

pub async fn unknown_processes_and_programs(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    for selector in ["999999", "no-such-tag"] {
        expect(&failure_of("signal", client.signal(&id, selector, "SIGTERM")).await?, "NOT_FOUND", None)?;
        expect(&failure_of("input", client.write_stdin(&id, selector, 0, b"x")).await?, "NOT_FOUND", None)?;
        expect(&failure_of("end of input", client.close_stdin(&id, selector)).await?, "NOT_FOUND", None)?;
        let follow = async { client.process_output(&id, selector, None).await?.next().await };
        expect(&failure_of("output", follow).await?, "NOT_FOUND", None)?;
    }
    // A process of the guest that was not started through the front door is none of ours.
    expect(&failure_of("signalling init", client.signal(&id, "1", "SIGKILL")).await?, "NOT_FOUND", None)?;
    let missing = || Exec::argv(&id, &["/no/such/program"]);
    expect(&failure_of("exec", client.exec(missing())).await?, "INVALID_INPUT", Some("argv"))?;
    expect(&failure_of("start", client.start(missing())).await?, "INVALID_INPUT", Some("argv"))?;
    let stream = async { client.exec_stream(missing()).await?.next().await };
    expect(&failure_of("the subscription exec", stream).await?, "INVALID_INPUT", Some("argv"))?;
    ensure!(client.processes(&id).await?.is_empty(), "a program that does not exist is listed");
    ensure!(client.sh(&id, "echo fine").await? == "fine");
    client.destroy(&id).await?;
    Ok(())
}

/// Both ways round: what one team has does not exist for the other.
pub async fn other_teams_see_nothing(stack: Arc<Stack>) -> Result<()> {
    let id = stack.platform().create(json!({ "labels": { "whose": "platform" } })).await?.id;
    let other = stack.client();
    ensure!(other.capsule(&id).await?.is_none(), "another team's capsule is shown");
    expect(&other.refused(NODE, json!({ "id": id })).await?, "NOT_FOUND", None)?;
    ensure!(other.capsules(json!({ "labels": { "whose": "platform" } })).await?.is_empty());
    for refused in [
        failure_of("pause", other.pause(&id)).await?,
        failure_of("resume", other.resume(&id)).await?,
        failure_of("destroy", other.destroy(&id)).await?,
        failure_of("ping", other.ping(&id)).await?,
        failure_of("timeout", other.set_timeout(&id, 1)).await?,
        failure_of("exec", other.exec(Exec::shell(&id, "true"))).await?,
        failure_of("start", other.start(Exec::shell(&id, "true"))).await?,
        failure_of("stream", async { other.exec_stream(Exec::shell(&id, "true")).await?.next().await })
            .await?,
        failure_of("watch", async { other.watch_capsule(&id).await?.next().await }).await?,
    ] {
        expect(&refused, "NOT_FOUND", None)?;
    }
    let capsule = stack.platform().capsule(&id).await?.context("the capsule")?;
    ensure!(capsule.state == "RUNNING" && capsule.timeout_sec == 0, "{capsule:?}");
    stack.platform().destroy(&id).await?;
    // An ordinary team's key is no administrator's.
    let create_host = "mutation { createHost(input: { name: \"mine\" }) { host { id } } }";
    expect(&other.refused(create_host, json!({})).await?, "FORBIDDEN", None)
}

const NODE: &str = "query($id: ID!) { node(id: $id) { id } }";

pub async fn keys_are_wanted(stack: Arc<Stack>) -> Result<()> {
    let id = stack.client().create(json!({})).await?.id;
    let wrong = format!("wrn_{}", "x".repeat(32));
    for key in [None, Some(wrong.as_str()), Some("nonsense")] {
        let nobody: Client = stack.client().with_key(key);
        for refused in [
            nobody.refused("{ viewer { team { id } } }", json!({})).await?,
            nobody.refused("{ capsules { edges { node { id } } } }", json!({})).await?,
            nobody.refused(CREATE, json!({ "input": {} })).await?,
            failure_of("exec", nobody.exec(Exec::shell(&id, "true"))).await?,
            failure_of("destroy", nobody.destroy(&id)).await?,
        ] {
            expect(&refused, "UNAUTHENTICATED", None)?;
        }
    }
    ensure!(stack.client().capsule(&id).await?.context("the capsule")?.state == "RUNNING");
    stack.client().destroy(&id).await?;
    Ok(())
}
