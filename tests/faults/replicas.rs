//! Several control planes on one database: what is done through one is seen through the other, whatever becomes of
//! Redis or of one of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::graphql::{Capsule, Collected, Exec, Subscription};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

const PATIENCE: Duration = Duration::from_secs(60);

async fn until_state(watch: &mut Subscription, state: &str) -> Result<Vec<String>> {
    let mut passed: Vec<String> = Vec::new();
    while passed.last().is_none_or(|last| last != state) {
        let next = watch.next_within(PATIENCE).await.with_context(|| format!("until {state}: {passed:?}"))?;
        passed.push(Capsule::from_event(&next.context("the watch ended")?)?.state);
    }
    Ok(passed)
}

/// Made through one, used and watched through the other; and the other way round.
pub async fn either_will_do(stack: &Stack) -> Result<()> {
    let [one, two] = [&stack.apis()[0], &stack.apis()[1]];
    let id = one.client().create(json!({})).await?.id;
    let line = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let mut stream = two.client().exec_stream(Exec::shell(&id, line)).await?;
    let (_, tag) = stream.started().await?;
    let mut collected = Collected::default();
    while collected.stdout.len() < 200 {
        collected.take(stream.next_within(PATIENCE).await?.context("ended early")?)?;
    }
    drop(stream);
    let after = Some(collected.next_offset());
    let rest = one.client().process_output(&id, &tag, after).await?.collect(PATIENCE).await?;
    let expected: String = (0..200).map(|i| format!("line {i}\n")).collect();
    ensure!([collected.stdout, rest.stdout].concat() == expected.as_bytes(), "{:?}", rest.gaps);

    let mut watch = two.client().watch_capsule(&id).await?;
    until_state(&mut watch, "RUNNING").await?;
    one.client().pause(&id).await?;
    let passed = until_state(&mut watch, "PAUSED").await?;
    ensure!(passed == ["PAUSING", "PAUSED"], "every change is seen: {passed:?}");
    one.client().resume(&id).await?;
    until_state(&mut watch, "RUNNING").await?;

    // One of them dies: the other serves on, and the one comes back.
    let mut watch = one.client().watch_capsule(&id).await?;
    until_state(&mut watch, "RUNNING").await?;
    two.kill9().await?;
    one.client().pause(&id).await?;
    until_state(&mut watch, "PAUSED").await?;
    two.start().await?;
    two.client().resume(&id).await?;
    until_state(&mut watch, "RUNNING").await?;
    one.client().destroy(&id).await?;
    Ok(())
}

/// While Redis is gone, and when it is back, nobody who watches stays with what was.
pub async fn redis_is_lost(stack: &Stack) -> Result<()> {
    let redis = stack.redis()?;
    let [one, two] = [&stack.apis()[0], &stack.apis()[1]];
    let id = one.client().create(json!({})).await?.id;
    let mut watch = two.client().watch_capsule(&id).await?;
    until_state(&mut watch, "RUNNING").await?;
    redis.kill9()?;
    one.client().pause(&id).await?;
    until_state(&mut watch, "PAUSED").await?;
    redis.start_again().await?;
    one.client().resume(&id).await?;
    until_state(&mut watch, "RUNNING").await?;
    wait::until("every change seen again", PATIENCE, async || {
        one.client().pause(&id).await?;
        let paused = until_state(&mut watch, "PAUSED").await?;
        one.client().resume(&id).await?;
        let resumed = until_state(&mut watch, "RUNNING").await?;
        Ok((paused.contains(&"PAUSING".to_owned()) && resumed.contains(&"RESUMING".to_owned())).then_some(()))
    })
    .await?;
    one.client().destroy(&id).await?;
    Ok(())
}
