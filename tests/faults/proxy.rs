//! Requests to services in a capsule while its pause fails.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::json;
use wrenn_tests::graphql::{Client, Exec, Form};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The longest anything may take to be noticed, or to come back.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 8000;

/// Answers every request with its own process's number.
const SERVER: &str = r#"
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die "listen: $@";
while (my $c = $s->accept) {
  while (my $h = <$c>) { last if $h eq "\r\n"; }
  print $c "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($$) . "\r\n\r\n$$"; close $c;
}
"#;

/// What the service answers; nothing if it is not the service that does.
async fn asked(client: &Client, id: &str) -> Result<Option<String>> {
    let answer = client.port_get(Form::Path, id, PORT, "/").await?;
    Ok(if answer.status() == StatusCode::OK { Some(answer.text().await?) } else { None })
}

/// While a pause is under way nobody is let in; once it has failed everybody is, to the same process as before.
pub async fn a_failed_pause_lets_requests_in_again(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.start(Exec::argv(&id, &["perl", "-e", SERVER, &PORT.to_string()])).await?;
    let mut served = None;
    wait::until_true("the server in the guest", PATIENCE, async || {
        served = asked(client, &id).await?;
        Ok(served.is_some())
    })
    .await?;
    // Before the vCPUs stop, while they stand still, and when all is written.
    for (number, point) in ["pause.prepared", "pause.stopped", "pause.committed"].into_iter().enumerate() {
        stack.host().order(&format!("pause.announced=delay(3000ms)*1;{point}=error*1"))?;
        let visit = async {
            wait::until_true("the pause", PATIENCE, async || {
                Ok(stack.host().passed("pause.announced")? == number + 1)
            })
            .await?;
            let let_in = asked(client, &id).await?.is_some();
            // One who was held up on the way may have come once it had failed.
            anyhow::Ok(let_in && stack.host().passed(point)? == 0)
        };
        let (paused, let_in) = tokio::join!(client.pause(&id), visit);
        ensure!(!let_in?, "{point}: let in while the pause was under way");
        ensure!(paused.is_err() && stack.host().passed(point)? == 1, "{point}: {paused:?}");
        // What was remembered of the capsule meanwhile is forgotten a moment later.
        wait::until_true("requests to be let in again", PATIENCE, async || {
            Ok(asked(client, &id).await? == served)
        })
        .await
        .with_context(|| format!("after {point}"))?;
    }
    stack.host().order("")?;
    client.destroy(&id).await?;
    Ok(())
}
