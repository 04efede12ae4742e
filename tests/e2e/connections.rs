//! Connections between guests and the outside, when a life ends and another begins.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_tests::graphql::{Client, Exec};
use wrenn_tests::outside::{ECHO, Outside};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

const PATIENCE: Duration = Duration::from_secs(30);

/// Who waits for a word on a connection of an earlier life is told, instead of waiting for ever; the life that goes on
/// keeps its connection.
pub async fn end_with_the_life_they_began_in(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let outside = Outside::start(stack.scope())?;
    let id = client.create(json!({})).await?.id;
    connect(client, &id, outside.addresses[0]).await?;
    is_connected(client, &id, "before").await?;

    let copy = client.fork(&id, 1).await?.remove(0).id;
    has_ended(client, &copy).await?;
    is_connected(client, &id, "beside the copy").await?;

    client.pause(&id).await?;
    client.resume(&id).await?;
    has_ended(client, &id).await?;
    // A new one is as good as ever, and the other capsule's is none of its business.
    for id in [&copy, &id] {
        connect(client, id, outside.addresses[0]).await?;
    }
    for id in [&copy, &id] {
        is_connected(client, id, "after").await?;
        client.destroy(id).await?;
    }
    Ok(())
}

/// Opens a connection and waits on it for what comes. Nothing is sent on it but what is put into `/run/say`,
/// which is there once it is open.
async fn connect(client: &Client, id: &str, address: Ipv4Addr) -> Result<()> {
    let outside = format!("/dev/tcp/{address}/{ECHO}");
    let line = format!(
        "cd /run; rm -f say heard over; \
         until (exec 3<>{outside}); do sleep 0.1; done; exec 3<>{outside}; mkfifo say; exec 4<>say; \
         cat <&4 >&3 & cat <&3 >heard 2>why; kill $!; mv why over"
    );
    client.start(Exec::argv(id, &["/bin/bash", "-c", &line])).await?;
    Ok(())
}

async fn is_connected(client: &Client, id: &str, word: &str) -> Result<()> {
    let line = format!("cd /run; test -p say && test ! -e over && echo '{word}' >say && cat heard");
    wait::until_true(format!("`{word}` coming back to {id}"), PATIENCE, async || {
        Ok(client.sh(id, &line).await?.contains(word))
    })
    .await
}

/// By an error, as `cat` says it.
async fn has_ended(client: &Client, id: &str) -> Result<()> {
    let reason = wait::until(format!("the end of the connection of {id}"), PATIENCE, async || {
        let over = client.sh(id, "test ! -e /run/over || cat /run/over").await?;
        Ok((!over.is_empty()).then_some(over))
    })
    .await?;
    ensure!(reason.contains("connection abort") || reason.contains("reset by peer"), "{reason}");
    Ok(())
}
