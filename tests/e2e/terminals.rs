//! Terminals: what is typed arrives in order and once, what is said arrives byte for byte.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_tests::graphql::{
    Client, Exec, Frame, ProcessEvent, ProcessStream, Screen, Socket, WRITE_PTY, pty_output_query,
    write_pty_variables,
};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The longest a terminal may be silent in these tests.
const SILENCE: Duration = Duration::from_secs(60);

/// A terminal that gives back what it gets, as it is.
const MIRROR: &str = "stty raw -echo; echo ready; exec cat";

/// Ends well if there is a `sleep` in the foreground of its terminal (proc_pid_stat(5)).
const SLEEPS: &str = "for stat in /proc/[0-9]*/stat; do read -r _ name _ _ group _ _ foreground _ < $stat || continue; \
    [ \"$name\" = '(sleep)' ] && [ $group = $foreground ] && exit 0; done 2> /dev/null; exit 1";

/// Reads on until the condition holds.
async fn until(
    stream: &mut ProcessStream,
    screen: &mut Screen,
    what: &str,
    condition: impl Fn(&Screen) -> bool,
) -> Result<()> {
    while !condition(screen) {
        let event =
            stream.next_within(SILENCE).await.with_context(|| format!("{what}: {}", screen.text()))?;
        screen.take(event.with_context(|| format!("the terminal ended before: {what}"))?)?;
    }
    Ok(())
}

pub async fn a_terminal_is_one(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let tag = client.open_pty(&id, "tty; exec sh").await?;
    let (mut one, mut two) =
        (client.pty_output(&id, &tag, None).await?, client.pty_output(&id, &tag, None).await?);
    let (mut seen, mut also) = (Screen::default(), Screen::default());
    let size = b"stty size; echo over-$((1+1))\n";
    let next = client.write_pty(&id, &tag, 0, size).await?;
    until(&mut one, &mut seen, "its size", |screen| screen.text().contains("over-2")).await?;
    ensure!(seen.text().contains("/dev/pts/") && seen.text().contains("24 80"), "{}", seen.text());

    client.resize_pty(&id, &tag, 132, 50).await?;
    for (stream, screen) in [(&mut one, &mut seen), (&mut two, &mut also)] {
        until(stream, screen, "its new size", |screen| screen.sizes == [(132, 50)]).await?;
    }
    let next = client.write_pty(&id, &tag, next, b"stty size; echo over-$((2+1))\n").await?;
    until(&mut one, &mut seen, "its size again", |screen| screen.text().contains("over-3")).await?;
    ensure!(seen.text().contains("50 132"), "{}", seen.text());

    // Control characters are the terminal's business.
    let next = client.write_pty(&id, &tag, next, b"sleep 1000; echo not-$((1+1))\n").await?;
    wait::until_true("`sleep` in the foreground", SILENCE, async || {
        Ok(client.exec(Exec::shell(&id, SLEEPS)).await?.exit_code == Some(0))
    })
    .await?;
    client.write_pty(&id, &tag, next, b"\x03echo interrupted-$((3+1))\n").await?;
    until(&mut one, &mut seen, "an interrupt", |screen| screen.text().contains("interrupted-4")).await?;
    ensure!(!seen.text().contains("not-2"), "{}", seen.text());
    client.close_pty(&id, &tag).await?;
    for (stream, screen) in [(&mut one, &mut seen), (&mut two, &mut also)] {
        until(stream, screen, "its end", |screen| screen.exit.is_some()).await?;
    }
    ensure!(seen.bytes == also.bytes, "two readers of one terminal saw two things");
    client.destroy(&id).await?;
    Ok(())
}

/// Text of one, two, three and four bytes a character, combined, from right to left; and every byte there is.
fn bytes_of_every_kind() -> Vec<u8> {
    let text = "plain äöüß Ελληνικά Кириллица עברית العربية हिन्दी ไทย 한국어 日本語 中文 👩‍👩‍👧‍👦 🏳️‍🌈 e\u{301} \u{10ffff} \u{feff}\u{200d}";
    let mut bytes: Vec<u8> = text.bytes().collect();
    bytes.extend(0..=255u8);
    bytes.extend(text.bytes().rev());
    bytes
}

/// Cut at every place, also within characters, and sent by the piece.
pub async fn bytes_of_every_kind_come_back(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let tag = client.open_pty(&id, MIRROR).await?;
    let mut stream = client.pty_output(&id, &tag, None).await?;
    let mut screen = Screen::default();
    until(&mut stream, &mut screen, "readiness", |screen| screen.text().contains("ready")).await?;
    let from = screen.bytes.len();
    let all = bytes_of_every_kind();
    let mut sequence = 0;
    for piece in all.chunks(1).take(200).chain(all[200..].chunks(7)) {
        sequence = client.write_pty(&id, &tag, sequence, piece).await?;
    }
    until(&mut stream, &mut screen, "everything", |screen| screen.bytes.len() >= from + all.len()).await?;
    ensure!(screen.bytes[from..] == all, "{}", screen.text());
    client.destroy(&id).await?;
    Ok(())
}

/// All at once over one socket, in any order, some twice: the terminal gets each once, in the right order. What came too
/// long before its turn is refused, and sent again, as by any client.
pub async fn what_is_typed_at_once_keeps_its_order(stack: Arc<Stack>) -> Result<()> {
    const PIECES: u64 = 80;
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let tag = client.open_pty(&id, MIRROR).await?;
    let mut stream = client.pty_output(&id, &tag, None).await?;
    let mut screen = Screen::default();
    until(&mut stream, &mut screen, "readiness", |screen| screen.text().contains("ready")).await?;
    let from = screen.bytes.len();
    let piece = |number: u64| format!("{number:0>9};").into_bytes();
    let mut socket = Socket::connect(client).await?;
    // Every seventh: neither forwards nor backwards. Operations are counted on, so that none has the id of another.
    let mut sent: Vec<u64> = (0..PIECES).map(|round| round * 7 % PIECES).collect();
    let variables = |number: u64| write_pty_variables(&id, &tag, number * 10, &piece(number));
    for (operation, number) in sent.iter().enumerate() {
        socket.start(&operation.to_string(), WRITE_PTY, variables(*number)).await?;
    }
    let mut taken = BTreeSet::new();
    while (taken.len() as u64) < PIECES {
        match tokio::time::timeout(SILENCE, socket.next()).await.context("the socket fell silent")?? {
            Frame::Next { id, .. } => {
                taken.insert(sent[id.parse::<usize>()?]);
            }
            Frame::Complete { .. } => {}
            Frame::Error { id, failure } if failure.first().field() == Some("sequence") => {
                let number = sent[id.parse::<usize>()?];
                socket.start(&sent.len().to_string(), WRITE_PTY, variables(number)).await?;
                sent.push(number);
            }
            other => bail!("{other:?} in answer to input"),
        }
    }
    for number in [0, PIECES / 2, PIECES - 1] {
        ensure!(client.write_pty(&id, &tag, number * 10, &piece(number)).await? == PIECES * 10, "a repeat");
    }
    let expected: Vec<u8> = (0..PIECES).flat_map(piece).collect();
    until(&mut stream, &mut screen, "everything", |screen| screen.bytes.len() >= from + expected.len())
        .await?;
    ensure!(screen.bytes[from..] == expected, "{}", screen.text());
    client.destroy(&id).await?;
    Ok(())
}

/// Eight terminals of one capsule on one socket, typed into at the same time.
pub async fn eight_sessions_at_once(stack: Arc<Stack>) -> Result<()> {
    const SESSIONS: usize = 8;
    const LINES: usize = 25;
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let opening = (0..SESSIONS).map(|_| client.open_pty(&id, MIRROR));
    let tags = try_join_all(opening).await?;
    let mut socket = Socket::connect(client).await?;
    for (session, tag) in tags.iter().enumerate() {
        let variables = json!({ "capsule": id, "tag": tag });
        socket.start(&session.to_string(), &pty_output_query(), variables).await?;
    }
    let mut screens: Vec<Screen> = (0..SESSIONS).map(|_| Screen::default()).collect();
    let lines = |session: usize| -> Vec<u8> {
        (0..LINES).flat_map(|line| format!("session {session} line {line}\n").into_bytes()).collect()
    };
    read_all(&mut socket, &mut screens, |_, screen| screen.text().contains("ready")).await?;
    let begun: Vec<usize> = screens.iter().map(|screen| screen.bytes.len()).collect();
    let typing = try_join_all(tags.iter().enumerate().map(async |(session, tag)| {
        let mut sequence = 0;
        for line in lines(session).split_inclusive(|byte| *byte == b'\n') {
            sequence = client.write_pty(&id, tag, sequence, line).await?;
        }
        anyhow::Ok(())
    }));
    let reading = read_all(&mut socket, &mut screens, |session, screen| {
        screen.bytes.len() >= begun[session] + lines(session).len()
    });
    tokio::try_join!(typing, reading)?;
    for (session, screen) in screens.iter().enumerate() {
        ensure!(screen.bytes[begun[session]..] == lines(session), "session {session}: {}", screen.text());
    }
    client.destroy(&id).await?;
    Ok(())
}

/// Reads the terminals of a socket until the condition holds of each.
async fn read_all(
    socket: &mut Socket,
    screens: &mut [Screen],
    condition: impl Fn(usize, &Screen) -> bool,
) -> Result<()> {
    while !screens.iter().enumerate().all(|(session, screen)| condition(session, screen)) {
        match tokio::time::timeout(SILENCE, socket.next()).await.context("the socket fell silent")?? {
            Frame::Next { id, data } => {
                screens[id.parse::<usize>()?].take(ProcessEvent::parse(&data["ptyOutput"])?)?;
            }
            other => bail!("{other:?} of a terminal that is open"),
        }
    }
    Ok(())
}

/// The listing of everything, through a terminal and through pipes, as it was written.
pub async fn a_long_listing_is_complete(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let list = "ls -laihR / 2>&1 | tee /run/listing";
    let tag = client.open_pty(&id, &format!("stty raw; {list}")).await?;
    let mut stream = client.pty_output(&id, &tag, None).await?;
    let mut screen = Screen::default();
    until(&mut stream, &mut screen, "the listing", |screen| screen.exit.is_some()).await?;
    same_as_listing(client, &id, &screen.bytes).await?;

    let collected = client.exec_stream(Exec::shell(&id, list)).await?.collect(SILENCE).await?;
    ensure!(collected.gaps.is_empty());
    same_as_listing(client, &id, &collected.stdout).await?;
    client.destroy(&id).await?;
    Ok(())
}

async fn same_as_listing(client: &Client, id: &str, bytes: &[u8]) -> Result<()> {
    let wanted = client.sh(id, "sha256sum < /run/listing | cut -c1-64; stat -c %s /run/listing").await?;
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        wanted == format!("{hash}\n{}", bytes.len()),
        "{} bytes, where {wanted} was written",
        bytes.len()
    );
    ensure!(bytes.len() > 100_000, "a listing of {} bytes is none of everything", bytes.len());
    Ok(())
}
