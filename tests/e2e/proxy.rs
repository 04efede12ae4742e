//! Services in a capsule, reached from outside by name and by path.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use wrenn_tests::graphql::{Client, Exec, Form};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// For anything that a guest under emulation does on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A web server in Perl, of which the smallest image has enough: one process a connection, the request's head as the
/// answer, except for
/// - `/redirect?<where>`, `/cookie`,
/// - `/events`: Server-Sent Events, the n-th once there is a file `/tmp/event-<n>`,
/// - `/socket`: a WebSocket that sends back what it is sent.
const SERVER: &str = r#"
use IO::Socket::INET; use Digest::SHA qw(sha1); use MIME::Base64; $SIG{CHLD} = "IGNORE";
my $s = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die "listen: $@";
while (my $c = $s->accept) {
  next if fork; $c->autoflush(1); binmode $c;
  while (defined(my $line = <$c>)) {
    my ($head, $length, $key) = ($line, 0, "");
    while (defined(my $h = <$c>)) { last if $h eq "\r\n"; $head .= $h;
      $length = $1 if $h =~ /^content-length: (\d+)/i; $key = $1 if $h =~ /^sec-websocket-key: (\S+)/i; }
    my $body = ""; while ($length > length $body) { read($c, $body, $length - length $body, length $body) or exit; }
    my ($path) = $line =~ m{^\S+ (\S+)}; my ($status, $more, $answer) = ("200 OK", "", $head . "\n" . $body);
    if ($path =~ m{^/redirect\?(.*)}) { ($status, $more, $answer) = ("302 Found", "Location: $1\r\n", ""); }
    if ($path eq "/cookie") { $more = "Set-Cookie: theirs=1; Path=/; HttpOnly\r\n"; }
    if ($path eq "/events") {
      print $c "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
      for (my $n = 0; ; $n++) { select(undef, undef, undef, 0.02) until -e "/tmp/event-$n";
        my $e = "data: $n\n\n"; printf $c "%x\r\n%s\r\n", length $e, $e or exit; }
    }
    if ($path eq "/socket") {
      my $accept = encode_base64(sha1($key . "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"), "");
      print $c "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "Sec-WebSocket-Accept: $accept\r\n\r\n";
      while (read($c, my $start, 2) == 2) {
        my ($first, $n) = unpack "CC", $start; $n &= 127; my $long = "";
        if ($n == 126) { read $c, $long, 2; $n = unpack "n", $long; }
        if ($n == 127) { read $c, $long, 8; $n = unpack "Q>", $long; }
        read $c, my $mask, 4; my $data = ""; while (length $data < $n) { read($c, $data, $n - length $data, length $data) or exit; }
        $data ^= substr($mask x ($n / 4 + 1), 0, $n);
        print $c pack("C", $first), $n < 126 ? pack("C", $n) : $n < 65536 ? pack("Cn", 126, $n) : pack("CQ>", 127, $n), $data;
        exit if ($first & 15) == 8;
      }
      exit;
    }
    print $c "HTTP/1.1 $status\r\n${more}Content-Length: " . length($answer) . "\r\n\r\n$answer";
  }
  exit;
}
"#;

async fn serve(client: &Client, id: &str, port: u16) -> Result<()> {
    client.start(Exec::argv(id, &["perl", "-e", SERVER, &port.to_string()])).await?;
    Ok(())
}

/// Starts the server and waits until it answers.
async fn served(client: &Client, id: &str, port: u16) -> Result<()> {
    serve(client, id, port).await?;
    until_served(client, id, port, "/", PATIENCE).await
}

/// Waits until a server in the guest answers. Until then nothing else is said than that nobody listens.
pub async fn until_served(
    client: &Client,
    id: &str,
    port: u16,
    path: &str,
    patience: Duration,
) -> Result<()> {
    wait::until_true("the server in the guest", patience, async || {
        let answer = client.port_get(Form::Path, id, port, path).await?;
        if answer.status() == StatusCode::OK {
            return Ok(true);
        }
        ensure!(said(&answer) == Some("PORT_CLOSED"), "{answer:?}");
        Ok(false)
    })
    .await
}

/// What the proxy says went wrong, if it was the proxy that answered.
pub fn said(answer: &Response) -> Option<&str> {
    answer.headers().get("x-wrenn-error").and_then(|value| value.to_str().ok())
}

/// What paths begin with for who sees them from outside.
pub fn prefix(form: Form, id: &str, port: u16) -> String {
    match form {
        Form::Path => format!("/proxy/{id}/{port}"),
        Form::Name => String::new(),
    }
}

pub fn header(answer: &Response, name: &str) -> Result<String> {
    let value = answer.headers().get(name).with_context(|| format!("no {name} in {answer:?}"))?;
    Ok(value.to_str()?.to_owned())
}

/// Listens once this machine has refused a connection, not before: only who tries again is answered.
const LATE: &str = r#"
use IO::Socket::INET;
sub refused { open my $f, "<", "/proc/net/snmp" or die "snmp: $!"; my @tcp = grep { /^Tcp:/ } <$f>; (split " ", $tcp[1])[14] }
my $before = refused(); open my $ready, ">", "/tmp/ready-$ARGV[0]" or die "ready: $!"; close $ready;
select(undef, undef, undef, 0.005) while refused() == $before;
my $s = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die "listen: $@";
while (my $c = $s->accept) {
  while (my $h = <$c>) { last if $h eq "\r\n"; }
  print $c "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlate"; close $c;
}
"#;

pub async fn a_service_that_is_about_to_listen_is_waited_for(stack: Arc<Stack>) -> Result<()> {
    /// A guest that is itself held up for the half second that three attempts take proves nothing, and gets another try.
    const TRIES: u16 = 5;
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    for port in 8000..8000 + TRIES {
        client.start(Exec::argv(&id, &["perl", "-e", LATE, &port.to_string()])).await?;
        wait::until_true("the program in the guest", PATIENCE, async || {
            let looked =
                client.sh(&id, &format!("test -e /tmp/ready-{port} && echo ready || echo not yet")).await?;
            Ok(looked == "ready")
        })
        .await?;
        let answer = client.port_get(Form::Path, &id, port, "/").await?;
        if answer.status() == StatusCode::OK {
            ensure!(answer.text().await? == "late");
            client.destroy(&id).await?;
            return Ok(());
        }
        ensure!(said(&answer) == Some("PORT_CLOSED"), "{answer:?}");
    }
    bail!("{TRIES} services began to listen when they were first asked for, and none was asked again");
}

pub async fn services_are_reached_by_name_and_by_path(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let closed = client.port_get(Form::Name, &id, 8000, "/").await?;
    ensure!((closed.status(), said(&closed)) == (StatusCode::BAD_GATEWAY, Some("PORT_CLOSED")), "{closed:?}");
    let page = client.port_request(Form::Name, Method::GET, &id, 8000, "/")?;
    let key = client.key().context("a key")?;
    let page = page.header("X-API-Key", key).header("Accept", "text/html").send().await?.text().await?;
    ensure!(page.contains("<h1>Bad Gateway</h1>") && page.contains("PORT_CLOSED"), "{page}");

    served(client, &id, 8000).await?;
    for form in Form::BOTH {
        let seen = client.port_get(form, &id, 8000, "/a//b/?c=%20d").await?.text().await?;
        ensure!(seen.starts_with("GET /a//b/?c=%20d HTTP/1.1\r\n"), "{form:?}: {seen}");
        ensure!(!seen.contains(key) && !seen.to_lowercase().contains("x-wrenn-"), "{form:?}: {seen}");
        let post = client.port_request(form, Method::POST, &id, 8000, "/")?.header("X-API-Key", key);
        let large = "x".repeat(3 << 20);
        let back = post.body(large.clone()).send().await?.text().await?;
        ensure!(back.ends_with(&large), "{form:?}: {} bytes came back", back.len());

        let prefix = prefix(form, &id, 8000);
        for place in ["/x/?y", "http://localhost:8000/x/?y", "http://127.0.0.1:8000/x/?y"] {
            let redirect = client.port_get(form, &id, 8000, &format!("/redirect?{place}")).await?;
            ensure!(
                header(&redirect, "location")? == format!("{prefix}/x/?y"),
                "{form:?} {place}: {redirect:?}"
            );
        }
        let cookie = header(&client.port_get(form, &id, 8000, "/cookie").await?, "set-cookie")?;
        ensure!(cookie == format!("theirs=1; Path={prefix}/; HttpOnly"), "{form:?}: {cookie}");
        let reserved = client.port_get(form, &id, wrenn_proto::ENVD_PORT, "/").await?;
        ensure!(reserved.status() == StatusCode::FORBIDDEN, "{form:?}: {reserved:?}");
    }
    client.destroy(&id).await?;
    Ok(())
}

pub async fn sockets_and_events_flow(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    served(client, &id, 8000).await?;
    for form in Form::BOTH {
        let socket = client.port_socket(form, &id, 8000, "/socket");
        let mut socket = tokio::time::timeout(PATIENCE, socket).await.context("no WebSocket")??;
        for length in [0, 5, 200, 70_000] {
            let text = "w".repeat(length);
            socket.send(Message::text(text.clone())).await?;
            let back = tokio::time::timeout(PATIENCE, socket.next()).await?.context("the socket ended")??;
            ensure!(back == Message::text(text), "{form:?}: {length} came back as {}", back.len());
        }
        socket.close(None).await?;

        // Each event comes before there is a next one.
        client.sh(&id, "rm -f /tmp/event-*").await?;
        let events = client.port_get(form, &id, 8000, "/events").await?;
        ensure!(header(&events, "content-type")? == "text/event-stream", "{events:?}");
        let mut events = events.bytes_stream();
        for n in 0..3 {
            client.sh(&id, &format!("touch /tmp/event-{n}")).await?;
            let event = tokio::time::timeout(PATIENCE, events.next()).await?.context("no more events")??;
            ensure!(event == format!("data: {n}\n\n"), "{form:?}: {event:?}");
        }
    }
    client.destroy(&id).await?;
    Ok(())
}

pub async fn only_those_who_may_reach_a_service(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    served(client, &id, 8000).await?;
    let token = client.preview_token(&id, 8000).await?;
    let copies = client.fork(&id, 1).await?;
    let copy = &copies.first().context("a copy")?.id;
    for form in Form::BOTH {
        let ask = async |id: &str, path: &str| -> Result<Response> {
            Ok(client.port_request(form, Method::GET, id, 8000, path)?.send().await?)
        };
        let signed = format!("/?wrenn_token={token}");
        ensure!(ask(&id, "/").await?.status() == StatusCode::UNAUTHORIZED, "{form:?}: private");
        ensure!(ask(&id, &signed).await?.status() == StatusCode::OK, "{form:?}: signed");
        ensure!(
            ask(copy, &signed).await?.status() == StatusCode::UNAUTHORIZED,
            "{form:?}: signed for another"
        );
        let platform = stack.platform().port_get(form, &id, 8000, "/").await?;
        ensure!(platform.status() == StatusCode::NOT_FOUND, "{form:?}: another team's");
        client.set_port_public(&id, 8000, true).await?;
        ensure!(ask(&id, "/").await?.status() == StatusCode::OK, "{form:?}: public");
        ensure!(ask(copy, "/").await?.status() == StatusCode::UNAUTHORIZED, "{form:?}: the copy's");
        client.set_port_public(&id, 8000, false).await?;
        ensure!(ask(&id, "/").await?.status() == StatusCode::UNAUTHORIZED, "{form:?}: private again");
    }
    client.destroy(copy).await?;
    client.destroy(&id).await?;
    Ok(())
}

pub async fn a_request_wakes_a_capsule_that_was_made_so(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    for wakes in [false, true] {
        let id = client.create(json!({ "autoResume": wakes })).await?.id;
        served(client, &id, 8000).await?;
        client.pause(&id).await?;
        let asked = (0..4).map(|_| client.port_get(Form::Name, &id, 8000, "/"));
        for answer in futures_util::future::try_join_all(asked).await? {
            let expected = if wakes { StatusCode::OK } else { StatusCode::CONFLICT };
            ensure!(answer.status() == expected, "wakes: {wakes}: {answer:?}");
        }
        let state = client.capsule(&id).await?.context("the capsule")?.state;
        ensure!(state == if wakes { "RUNNING" } else { "PAUSED" }, "wakes: {wakes}: {state}");
        client.destroy(&id).await?;
    }
    Ok(())
}
