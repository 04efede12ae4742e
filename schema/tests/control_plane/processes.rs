//! Running things in capsules.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use serde_json::json;
use tonic::Status;
use wrenn_entities::capsule::CapsuleState;
use wrenn_schema::Spent;

use crate::{
    agent::{arrived, service::SIGNAL_TOOK_US},
    on_both_databases,
    world::{PATIENCE, Refused, World, next, next_data, refused},
};

on_both_databases!(
    exec_answers_once,
    a_request_runs_a_few_programs,
    exec_wants_a_running_capsule,
    a_program_gets_a_capsule_of_its_own,
    processes_are_talked_to,
    input_goes_by_what_is_remembered_as_long_as_that_is_true,
    terminals_are_opened_and_closed,
    output_is_live,
    output_is_taken_up_again,
    streams_end_with_a_cause,
    what_a_guest_took_is_told_from_what_its_host_did,
);

const EXEC: &str = "mutation($input: ExecInput!) { exec(input: $input) {
    pid exitCode signal stdout stderr stdoutEncoding stderrEncoding truncated
} }";
const EVENTS: &str = "{
    __typename
    ... on ProcessStarted { pid tag }
    ... on ProcessOutput { stream sequence data }
    ... on ProcessGap { stream from to }
    ... on ProcessExited { exitCode signal cause { code message } }
}";

async fn exec_answers_once(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let input = json!({"capsuleId": id, "command": "cat", "stdin": STANDARD.encode("hello")});
    let done = world.ask(EXEC, json!({"input": input})).await;
    assert_eq!(
        done["exec"],
        json!({
            "pid": 7, "exitCode": 3, "signal": null, "stdout": "hello", "stderr": "done", "stdoutEncoding": "UTF8",
            "stderrEncoding": "UTF8", "truncated": false,
        })
    );
    world.reads();
    let done = world.ask(EXEC, json!({"input": {"capsuleId": id, "argv": ["binary"]}})).await;
    let reads = world.reads();
    assert!(reads.len() <= 2, "the key, unless it was seen a moment ago, and the capsule: {reads:#?}");
    assert_eq!(
        (&done["exec"]["stdout"], &done["exec"]["stdoutEncoding"]),
        (&json!("/wA="), &json!("BASE64"))
    );
    let done = world.ask(EXEC, json!({"input": {"capsuleId": id, "argv": ["flood"]}})).await;
    assert_eq!(done["exec"]["truncated"], true);
    assert_eq!(done["exec"]["stdout"].as_str().expect("text").len(), 16 * 1024 * 1024);

    for (input, code, field) in [
        (json!({"capsuleId": id}), "INVALID_INPUT", "command"),
        (json!({"capsuleId": id, "command": "a", "argv": ["a"]}), "INVALID_INPUT", "command"),
        (json!({"capsuleId": "cl-1", "command": "a"}), "INVALID_INPUT", "capsuleId"),
        (json!({"capsuleId": id, "command": "a", "stdin": "?"}), "INVALID_INPUT", "stdin"),
        (json!({"capsuleId": id, "argv": ["/no/such/program"]}), "NOT_FOUND", "argv"),
    ] {
        let error = world.refused(EXEC, json!({"input": input})).await;
        assert_eq!(error.brief(), (code, Some(field)), "{input}: {error:?}");
    }
}

async fn a_request_runs_a_few_programs(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let asking = |programs: usize| {
        let exec =
            |number| format!("a{number}: exec(input: {{capsuleId: \"{id}\", command: \"true\"}}) {{ pid }} ");
        format!("mutation {{ {} }}", (0..programs).map(exec).collect::<String>())
    };
    world.ask(&asking(4), json!({})).await;
    assert_eq!(agent.calls("exec"), 4);
    let error = world.refused(&asking(5), json!({})).await;
    assert!(error.message.contains("complex"), "{error:?}");
    let run = "runInNewCapsule(input: {command: \"true\"}) { result { pid } }";
    let many: String = (0..5).map(|number| format!("a{number}: {run} ")).collect();
    let error = world.refused(&format!("mutation {{ {many} }}"), json!({})).await;
    assert!(error.message.contains("complex"), "{error:?}");
    assert_eq!(agent.calls("exec"), 4);
}

async fn exec_wants_a_running_capsule(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    world.ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id})).await;
    let error = world.refused(EXEC, json!({"input": {"capsuleId": id, "command": "true"}})).await;
    assert_eq!(error.code, "FAILED_PRECONDITION");
    assert!(error.message.contains("resume it first"), "{error:?}");
    assert_eq!(agent.calls("exec"), 0);
    let missing = world.plant_held(CapsuleState::Missing, Some(agent.host), None).await.to_string();
    let error = world.refused(EXEC, json!({"input": {"capsuleId": missing, "command": "true"}})).await;
    assert_eq!(error.code, "UNAVAILABLE");
}

async fn processes_are_talked_to(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let done = world
        .ask(
            "mutation($id: ID!) {
                startProcess(input: {capsuleId: $id, command: \"sleep 1\", keepAwake: true}) { process { pid tag startedAt } }
                writeStdin(capsuleId: $id, selector: \"7\", sequence: \"5\", data: \"aGVsbG8=\") { nextSequence }
                closeStdin(capsuleId: $id, selector: \"proc-0000abcd\") { nextSequence }
                signalProcess(capsuleId: $id, selector: \"7\") { process { running signal } }
            }",
            json!({"id": id}),
        )
        .await;
    assert_eq!(done["startProcess"]["process"]["pid"], 7);
    assert_eq!(done["writeStdin"]["nextSequence"], "10");
    assert_eq!(done["closeStdin"]["nextSequence"], "9");
    assert_eq!(done["signalProcess"]["process"], json!({"running": false, "signal": "SIGTERM"}));
    let error = world
        .refused(
            "mutation($id: ID!) { signalProcess(capsuleId: $id, selector: \"999\", signal: SIGKILL) { process { pid } } }",
            json!({"id": id}),
        )
        .await;
    assert_eq!(error.brief(), ("NOT_FOUND", Some("selector")));
}

async fn input_goes_by_what_is_remembered_as_long_as_that_is_true(world: &World) {
    const WRITE: &str = "mutation($id: ID!) {
        writeStdin(capsuleId: $id, selector: \"7\", sequence: \"5\", data: \"aGVsbG8=\") { nextSequence }
    }";
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let write = async || {
        let written = world.ask(WRITE, json!({"id": id})).await;
        assert_eq!(written["writeStdin"]["nextSequence"], "10");
    };
    // That it was made is heard of a moment later, and asks for another reading.
    let deadline = Instant::now() + PATIENCE;
    while {
        world.reads();
        write().await;
        !world.reads().is_empty()
    } {
        assert!(Instant::now() < deadline, "read each time");
    }

    // A host that does not have it any more: the database knows where it is.
    let calls = agent.calls("write");
    agent.refuse_next("write", Status::not_found("there is no such capsule"));
    write().await;
    assert_eq!(agent.calls("write"), calls + 2);
    assert!(!world.reads().is_empty(), "the database was asked");

    // Another team's is none, however well it is remembered.
    write().await;
    let calls = agent.calls("write");
    let (_, other) = world.other_team().await;
    let error = refused(world.execute(Some(&other), WRITE, json!({"id": id})).await);
    assert_eq!((error.code.as_str(), agent.calls("write")), ("NOT_FOUND", calls));

    // What the database says of one that does not run is said at last.
    world.ask("mutation($id: ID!) { pauseCapsule(id: $id) { capsule { id } } }", json!({"id": id})).await;
    let error = loop {
        let response = world.execute(Some(&world.key), WRITE, json!({"id": id})).await;
        if !response.errors.is_empty() {
            break refused(response);
        }
        assert!(Instant::now() < deadline, "still taken to run");
    };
    assert_eq!(error.code, "FAILED_PRECONDITION");
    assert!(error.message.contains("resume it first"), "{error:?}");
}

async fn terminals_are_opened_and_closed(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let done = world
        .ask(
            "mutation($id: ID!) {
                openPty(input: {capsuleId: $id, columns: 100, user: \"root\"}) { pty { pid tag columns rows } }
                writePty(capsuleId: $id, tag: \"proc-0000abcd\", sequence: \"5\", data: \"aGVsbG8=\") { nextSequence }
                resizePty(capsuleId: $id, tag: \"proc-0000abcd\", columns: 120, rows: 40) { pty { pid columns rows } }
                closePty(capsuleId: $id, tag: \"proc-0000abcd\") { pty { pid tag columns } }
            }",
            json!({"id": id}),
        )
        .await;
    assert_eq!(
        done,
        json!({
            "openPty": {"pty": {"pid": 7, "tag": "proc-0000abcd", "columns": 100, "rows": 24}},
            "writePty": {"nextSequence": "10"},
            "resizePty": {"pty": {"pid": 7, "columns": 120, "rows": 40}},
            "closePty": {"pty": {"pid": 7, "tag": "proc-0000abcd", "columns": 0}},
        })
    );
    let started = agent.started().remove(0);
    assert_eq!(started.pty.map(|size| (size.columns, size.rows)), Some((100, 24)));
    assert_eq!((started.user.as_str(), started.close_stdin), ("root", false));

    let query =
        format!("subscription($id: ID!) {{ ptyOutput(capsuleId: $id, tag: \"sh\", after: \"3\") {EVENTS} }}");
    let mut events = Box::pin(world.subscribe(&query, json!({"id": id})).await);
    assert_eq!(next_data(&mut events).await["ptyOutput"]["__typename"], "ProcessGap");
    let watch = |tag: &str| {
        format!(
            "subscription($id: ID!) {{
                ptyOutput(capsuleId: $id, tag: \"{tag}\", after: \"3\") {{ __typename ... on PtyResized {{ columns rows }} }}
            }}"
        )
    };
    let mut watched = Vec::new();
    for tag in ["proc-0000abcd", "proc-0000abcd", "other"] {
        let mut one = Box::pin(world.subscribe(&watch(tag), json!({"id": id})).await);
        assert_eq!(next_data(&mut one).await["ptyOutput"], json!({"__typename": "ProcessGap"}));
        watched.push(one);
    }
    let resize = "mutation($id: ID!, $rows: Int!) {
        resizePty(capsuleId: $id, tag: \"proc-0000abcd\", columns: 120, rows: $rows) { pty { pid } }
    }";
    for rows in [40, 41] {
        world.ask(resize, json!({"id": id, "rows": rows})).await;
    }
    for one in &mut watched[..2] {
        for rows in [40, 41] {
            assert_eq!(
                next_data(one).await["ptyOutput"],
                json!({"__typename": "PtyResized", "columns": 120, "rows": rows})
            );
        }
    }
    let other = tokio::time::timeout(std::time::Duration::from_millis(200), watched[2].next()).await;
    assert!(other.is_err(), "of another terminal: {other:?}");
    // Who falls behind is told the size that it has by then.
    for rows in 100..200 {
        world.ask(resize, json!({"id": id, "rows": rows})).await;
    }
    let seen = next_data(&mut watched[0]).await;
    assert_eq!(seen["ptyOutput"], json!({"__typename": "PtyResized", "columns": 120, "rows": 199}));
    world.ask(resize, json!({"id": id, "rows": 200})).await;
    assert_eq!(next_data(&mut watched[0]).await["ptyOutput"]["rows"], 200, "and then of what follows");
    for (call, code, field) in [
        ("closePty(capsuleId: $id, tag: \"none\") { pty { pid } }", "NOT_FOUND", "tag"),
        ("closePty(capsuleId: $id, tag: \"7\") { pty { pid } }", "INVALID_INPUT", "tag"),
        (
            "resizePty(capsuleId: $id, tag: \"sh\", columns: 0, rows: 1) { pty { pid } }",
            "INVALID_INPUT",
            "columns",
        ),
        ("resizePty(capsuleId: $id, tag: \"none\", columns: 1, rows: 1) { pty { pid } }", "NOT_FOUND", "tag"),
    ] {
        let error = world.refused(&format!("mutation($id: ID!) {{ {call} }}"), json!({"id": id})).await;
        assert_eq!(error.brief(), (code, Some(field)), "{call}: {error:?}");
    }
}

async fn output_is_live(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = format!("subscription($input: ExecInput!) {{ exec(input: $input) {EVENTS} }}");
    let input = json!({"capsuleId": id, "argv": ["cat"], "stdin": STANDARD.encode("hello")});
    let mut events = Box::pin(world.subscribe(&query, json!({"input": input})).await);
    assert_eq!(
        next_data(&mut events).await["exec"],
        json!({"__typename": "ProcessStarted", "pid": 7, "tag": "proc-0000abcd"})
    );
    assert_eq!(
        next_data(&mut events).await["exec"],
        json!({"__typename": "ProcessOutput", "stream": "STDOUT", "sequence": "0", "data": "aGVsbG8="})
    );
    assert_eq!(next_data(&mut events).await["exec"]["stream"], "STDERR");
    assert_eq!(
        next_data(&mut events).await["exec"],
        json!({"__typename": "ProcessExited", "exitCode": 3, "signal": null, "cause": null})
    );
    assert!(next(&mut events).await.is_none(), "the exit is the end");
}

async fn output_is_taken_up_again(world: &World) {
    let _agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = format!(
        "subscription($id: ID!) {{ processOutput(capsuleId: $id, selector: \"7\", after: {{stdout: \"10\"}}) {EVENTS} }}"
    );
    let mut events = Box::pin(world.subscribe(&query, json!({"id": id})).await);
    assert_eq!(
        next_data(&mut events).await["processOutput"],
        json!({"__typename": "ProcessGap", "stream": "STDOUT", "from": "10", "to": "15"})
    );
    assert_eq!(next_data(&mut events).await["processOutput"]["sequence"], "15");
    assert_eq!(next_data(&mut events).await["processOutput"]["exitCode"], 0);
    assert!(next(&mut events).await.is_none());
}

async fn streams_end_with_a_cause(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let query = format!("subscription($input: ExecInput!) {{ exec(input: $input) {EVENTS} }}");
    let exec = async |line: &str| {
        let mut events =
            Box::pin(world.subscribe(&query, json!({"input": {"capsuleId": id, "argv": [line]}})).await);
        assert_eq!(next_data(&mut events).await["exec"]["__typename"], "ProcessStarted");
        events
    };
    let mut paused = exec("be paused").await;
    let ended = Refused::of(&next(&mut paused).await.expect("says why it ends").errors[0]);
    assert_eq!((ended.code.as_str(), ended.cause.as_deref()), ("UNAVAILABLE", Some("CAPSULE_PAUSED")));
    assert!(next(&mut paused).await.is_none());

    let mut lost = exec("be lost").await;
    assert_eq!(
        next_data(&mut lost).await["exec"]["cause"],
        json!({"code": "VMM_DIED", "message": "the VMM died"})
    );
    assert!(next(&mut lost).await.is_none());
    let error = world.refused(EXEC, json!({"input": {"capsuleId": id, "argv": ["be lost"]}})).await;
    assert_eq!((error.code.as_str(), error.cause.as_deref()), ("UNAVAILABLE", Some("VMM_DIED")));

    let mut hanging = exec("hang").await;
    agent.kill();
    let ended = Refused::of(&next(&mut hanging).await.expect("says why it ends").errors[0]);
    assert_eq!((ended.code.as_str(), ended.cause.as_deref()), ("UNAVAILABLE", Some("HOST_AGENT_LOST")));
    assert!(next(&mut hanging).await.is_none());
}

async fn a_program_gets_a_capsule_of_its_own(world: &World) {
    let agent = world.host("one").await;
    let run = "mutation($input: RunInNewCapsuleInput!) { runInNewCapsule(input: $input) {
        result { exitCode stdout } capsule { id state name } } }";
    let input = json!({"command": "cat", "stdin": STANDARD.encode("hello"), "capsule": {"name": "once"}});
    let done = world.ask(run, json!({"input": input})).await["runInNewCapsule"].take();
    assert_eq!(done["result"], json!({"exitCode": 3, "stdout": "hello"}));
    assert_eq!((&done["capsule"]["state"], &done["capsule"]["name"]), (&json!("STOPPED"), &json!("once")));
    assert!(agent.capsules().is_empty(), "it is gone");

    let kept =
        world.ask(run, json!({"input": {"argv": ["cat"], "keep": true}})).await["runInNewCapsule"].take();
    assert_eq!(kept["capsule"]["state"], "RUNNING");
    assert_eq!(agent.capsules().len(), 1);

    // It goes whatever becomes of the program.
    let lost = world.refused(run, json!({"input": {"argv": ["be lost"]}})).await;
    assert_eq!(lost.cause.as_deref(), Some("VMM_DIED"));
    assert_eq!(agent.capsules().len(), 1);
    let made = agent.calls("create");
    let wrong = world.refused(run, json!({"input": {}})).await;
    assert_eq!(wrong.brief(), ("INVALID_INPUT", Some("command")));
    assert_eq!(agent.calls("create"), made, "what is wrong is said before there is a capsule");

    // And of whoever asked, also while it is being made.
    for gone_in in ["create", "exec"] {
        let (before, destroyed) = (agent.calls(gone_in), agent.calls("destroy"));
        let gate = agent.gate(gone_in);
        let asked = world.execute(Some(&world.key), run, json!({"input": {"argv": ["hang"]}}));
        tokio::select! {
            answer = asked => panic!("{answer:?}"),
            () = arrived(&agent, gone_in, before + 1) => {}
        }
        gate.add_permits(100);
        arrived(&agent, "destroy", destroyed + 1).await;
    }
}

async fn what_a_guest_took_is_told_from_what_its_host_did(world: &World) {
    let agent = world.host("one").await;
    let id = world.create().await.to_string();
    let gate = agent.gate("signal");
    let held = Duration::from_millis(20);
    let spent = Arc::new(Spent::default());
    let query =
        "mutation($id: ID!) { signalProcess(capsuleId: $id, selector: \"7\") { process { running } } }";
    let asked = spent.note(world.ask(query, json!({"id": id})));
    let answered = async {
        arrived(&agent, "signal", 1).await;
        tokio::time::sleep(held).await;
        gate.add_permits(1);
    };
    tokio::join!(asked, answered);
    let guest = Duration::from_micros(SIGNAL_TOOK_US);
    assert_eq!((spent.calls(), spent.guests()), (1, guest));
    assert!(spent.agents() >= held - guest, "{spent:?}");
    // Nobody is told of a guest that was not asked.
    let spent = Arc::new(Spent::default());
    spent.note(world.ask("{ capsules { nodes { id } } }", json!({}))).await;
    assert_eq!((spent.calls(), spent.guests(), spent.agents()), (0, Duration::ZERO, Duration::ZERO));
}
