//! What an operator asks before anything else.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::stack::Stack;

/// `wrenn-agent doctor` says what the agent really uses, and leaves the running one alone.
pub async fn says_what_the_agent_uses(stack: Arc<Stack>) -> Result<()> {
    let host: Value = stack.platform().get("node", HOST, json!({ "id": stack.host().id() })).await?;
    let store = host["diskStore"].as_str().context("diskStore")?;
    let vmm = stack.vmm().await?;
    let said = stack.host().doctor().await?;
    for word in [&vmm, store, "network"] {
        ensure!(said.contains(word), "`{word}` is not in what doctor says:\n{said}");
    }
    let id = stack.client().create(json!({})).await?.id;
    ensure!(stack.client().sh(&id, "echo here").await? == "here");
    stack.client().destroy(&id).await?;
    Ok(())
}

const HOST: &str = "query($id: ID!) { node(id: $id) { ... on Host { diskStore } } }";
