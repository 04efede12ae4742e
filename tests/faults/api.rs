//! The control plane dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::graphql::{Capsule, Client, Collected, Exec};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

const PATIENCE: Duration = Duration::from_secs(60);

/// States that a capsule may stay in.
const STABLE: [&str; 4] = ["RUNNING", "PAUSED", "STOPPED", "ERROR"];

/// Waits until no row is in the midst of a change, and the host runs exactly what the rows say.
pub async fn settled(stack: &Stack) -> Result<Vec<Capsule>> {
    wait::until("every capsule in a stable state", PATIENCE, async || {
        let capsules = stack.client().capsules(json!({})).await?;
        if let Some(unstable) = capsules.iter().find(|capsule| !STABLE.contains(&capsule.state.as_str())) {
            anyhow::bail!("{} is {}", unstable.id, unstable.state);
        }
        let running: Vec<&Capsule> = capsules.iter().filter(|capsule| capsule.state == "RUNNING").collect();
        if let Some(dead) = running.iter().find(|capsule| stack.vmm_of(&capsule.id).is_none()) {
            anyhow::bail!("{} is RUNNING without a VMM", dead.id);
        }
        let vmms = stack.vmm_count();
        let expected = running.len()..=running.len() + stack.warm_pool();
        ensure!(expected.contains(&vmms), "{vmms} VMMs for {} running capsules", running.len());
        Ok(Some(capsules))
    })
    .await
}

/// Capsules and their processes do not notice; output is taken up again.
pub async fn killed_while_capsules_run(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let vmm = stack.vmm_of(&id);
    let line = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let mut stream = client.exec_stream(Exec::shell(&id, line)).await?;
    let (_, tag) = stream.started().await?;
    let mut collected = Collected::default();
    while collected.stdout.len() < 100 {
        collected.take(stream.next_within(PATIENCE).await?.context("ended early")?)?;
    }
    stack.kill9_api().await?;
    // What had been sent still arrives, then the connection is gone.
    while let Ok(Some(event)) = stream.next_within(PATIENCE).await {
        collected.take(event)?;
    }
    stack.start_api().await?;
    let rest = follow(client, &id, &tag, collected.next_offset()).await?;
    let expected: String = (0..300).map(|i| format!("line {i}\n")).collect();
    let got = [collected.stdout, rest.stdout].concat();
    ensure!(got == expected.as_bytes(), "{} bytes of {}", got.len(), expected.len());
    ensure!(stack.vmm_of(&id) == vmm, "the capsule was replaced");
    settled(stack).await?;
    Ok(())
}

/// The rest of a process's output, once the control plane reaches the host again.
async fn follow(client: &Client, id: &str, tag: &str, after: u64) -> Result<Collected> {
    let mut stream = wait::until("output to be had again", PATIENCE, async || {
        let mut stream = client.process_output(id, tag, Some(after)).await?;
        stream.started().await?;
        Ok(Some(stream))
    })
    .await?;
    stream.collect(PATIENCE).await
}

/// Where a create, a pause, a resume and a destroy are held up, all at once, while somebody is killed: each soon after its
/// beginning, or each shortly before its end.
const MOMENTS: [[&str; 4]; 2] = [
    ["create.recorded", "pause.stopped", "launch.begun", "destroy.announced"],
    ["launch.restored", "launch.handed-over", "pause.committed", "destroy.removed"],
];

/// Longer than it takes for all of them to get there.
const HELD_MS: u32 = 5000;

/// Orders that whatever comes to one of these failpoints is held up there, once, and waits until each was come to.
async fn all_held(stack: &Stack, moment: &[&str]) -> Result<()> {
    let host = stack.host();
    let passed = || moment.iter().map(|point| host.passed(point)).collect::<Result<Vec<usize>>>();
    let before = passed()?;
    let orders: Vec<String> = moment.iter().map(|point| format!("{point}=delay({HELD_MS}ms)*1")).collect();
    host.order(&orders.join(";"))?;
    wait::until_true(format!("all changes held up at {moment:?}"), PATIENCE, async || {
        Ok(passed()?.iter().zip(&before).all(|(now, before)| now > before))
    })
    .await?;
    host.order("")
}

/// Does `crash` in the midst of every change: afterwards no row is stuck, nothing runs that no row knows, nothing that
/// was not to be destroyed is lost, and what was running goes on.
pub async fn crash_amid_changes(stack: &Stack, crash: impl AsyncFn() -> Result<()>) -> Result<()> {
    let client = stack.client();
    let survivor = client.create(json!({})).await?.id;
    client.sh(&survivor, "echo kept > /run/in-memory").await?;
    let vmm = stack.vmm_of(&survivor);
    for moment in MOMENTS {
        let [to_pause, to_resume, to_destroy] = [
            client.create(json!({})).await?.id,
            client.create(json!({})).await?.id,
            client.create(json!({})).await?.id,
        ];
        client.pause(&to_resume).await?;
        let changes = async {
            // Their answers are lost, or are not: either is right.
            let _ = tokio::join!(
                client.create_as_answered(json!({ "labels": { "killed": "amid" } })),
                client.pause(&to_pause),
                client.resume(&to_resume),
                client.destroy(&to_destroy),
            );
        };
        let in_the_midst = async {
            all_held(stack, &moment).await?;
            crash().await
        };
        let (crashed, ()) = tokio::join!(in_the_midst, changes);
        crashed?;
        let capsules = settled(stack).await.with_context(|| format!("after a crash at {moment:?}"))?;
        for id in [&survivor, &to_pause, &to_resume] {
            let capsule =
                capsules.iter().find(|capsule| capsule.id == **id).context("a capsule's row is gone")?;
            ensure!(["RUNNING", "PAUSED"].contains(&capsule.state.as_str()), "{moment:?}: {capsule:?}");
        }
        // Whatever became of them, they can be used and destroyed.
        for id in [&to_pause, &to_resume] {
            if client.capsule(id).await?.context("the capsule")?.state == "PAUSED" {
                client.resume(id).await?;
            }
            ensure!(client.sh(id, "echo here").await? == "here");
        }
        for capsule in capsules.iter().filter(|capsule| capsule.id != survivor && capsule.state != "STOPPED")
        {
            client.destroy(&capsule.id).await?;
        }
        ensure!(stack.vmm_of(&survivor) == vmm, "the survivor was replaced");
    }
    ensure!(client.sh(&survivor, "cat /run/in-memory").await? == "kept");
    Ok(())
}

pub async fn killed_amid_changes(stack: &Stack) -> Result<()> {
    crash_amid_changes(stack, async || {
        stack.kill9_api().await?;
        stack.start_api().await
    })
    .await
}

pub async fn killed_amid_changes_on_postgres(stack: &Stack) -> Result<()> {
    killed_amid_changes(stack).await
}
