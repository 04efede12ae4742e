//! A capsule's VMM dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use wrenn_tests::graphql::{Capsule, Collected, Exec, Failure};
use wrenn_tests::inventory::HostInventory;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The state says so at once; only a test that fails waits for so long.
const NOTICED: Duration = Duration::from_secs(30);

pub async fn killed_while_output_flows(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let neighbour = client.create(json!({})).await?.id;
    let before = HostInventory::take(stack.scope())?;
    let id = client.create(json!({})).await?.id;
    let mut watch = client.watch_capsule(&id).await?;
    let mut silent = client.exec_stream(Exec::argv(&id, &["sleep", "1000"])).await?;
    let (_, tag) = silent.started().await?;
    let mut following = client.process_output(&id, &tag, None).await?;
    following.started().await?;
    let mut loud = client.exec_stream(Exec::shell(&id, "while :; do echo tick; sleep 0.02; done")).await?;
    loud.started().await?;

    let vmm = stack.vmm_of(&id).context("the VMM")?;
    kill(Pid::from_raw(vmm.cast_signed()), Signal::SIGKILL)?;
    loop {
        let seen = Capsule::from_event(&watch.next_within(NOTICED).await?.context("the watch ended")?)?;
        if ["STOPPED", "ERROR"].contains(&seen.state.as_str()) {
            ensure!(!seen.cause_code().is_empty(), "no cause says why: {seen:?}");
            break;
        }
    }
    for (name, stream) in [("silent", &mut silent), ("following", &mut following), ("loud", &mut loud)] {
        stream
            .broken_off(&mut Collected::default(), Duration::from_secs(10))
            .await
            .with_context(|| format!("the {name} stream"))?;
    }
    let refused = client.exec(Exec::shell(&id, "true")).await.err().context("exec in a dead capsule")?;
    let refused = refused.downcast::<Failure>()?;
    ensure!(["FAILED_PRECONDITION", "NOT_FOUND"].contains(&refused.first().code()), "{refused}");
    ensure!(client.sh(&neighbour, "echo here").await? == "here");

    // An ERROR keeps its disk until it is destroyed; a STOPPED one keeps nothing.
    client.destroy(&id).await?;
    wait::until_true("the host as it was", Duration::from_secs(20), async || {
        let difference = super::churn::comparable(&before)
            .difference(&super::churn::comparable(&HostInventory::take(stack.scope())?));
        difference.into_result("left of a capsule whose VMM was killed")?;
        Ok(true)
    })
    .await
}
