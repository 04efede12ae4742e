use super::*;
use std::convert::Infallible;

const GRACE: Duration = Duration::from_secs(30);

fn write(output: &Output, stream: usize, count: u64) -> u64 {
    let mut written = 0;
    while written < count {
        let Room::Bytes(room) = output.room(stream) else { break };
        let limit = room.min((count - written) as usize);
        let Ok(n) = output.fill(stream, limit, |slot| Ok::<_, Infallible>(slot.len()));
        written += n as u64;
    }
    written
}

fn drain(output: &Output, reader: ReaderId) -> u64 {
    let mut total = 0;
    while let Next::Event(event) = output.next(reader) {
        if let Event::Output(it) = event {
            assert!(it.data.len() <= CHUNK);
            total += it.data.len() as u64;
        }
    }
    total
}

#[tokio::test(start_paused = true)]
async fn unwatched_runs_free_and_reports_the_gap() {
    let output = Output::plain(GRACE);
    let much = 3 * (LIVE + HISTORY);
    assert_eq!(write(&output, 0, much), much);
    let reader = output.attach(&OutputCursor { stdout: Some(5), ..Default::default() }).expect("attach");
    let oldest = much - LIVE - HISTORY;
    let gap = ProcessGap { stream: OutputStream::Stdout.into(), from: 5, to: oldest };
    assert_eq!(output.next(reader), Next::Event(Event::Gap(gap)));
    assert_eq!(drain(&output, reader), LIVE + HISTORY);
}

#[tokio::test(start_paused = true)]
async fn the_slowest_reader_holds_back_one_stream_only() {
    let output = Output::plain(GRACE);
    let slow = output.attach(&OutputCursor::default()).expect("attach");
    let fast = output.attach(&OutputCursor::default()).expect("attach");
    assert_eq!(write(&output, 0, 10 * LIVE), LIVE);
    assert_eq!(drain(&output, fast), LIVE);
    assert_eq!(output.room(0), Room::None { until: None });
    assert!(matches!(output.room(1), Room::Bytes(_)));
    output.detach(slow);
    assert_eq!(write(&output, 0, 10 * LIVE), LIVE, "a reader that left does not count");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reader_is_waited_for_and_finds_its_history() {
    let output = Output::plain(GRACE);
    let first = output.attach(&OutputCursor::default()).expect("attach");
    let mut delivered = 0;
    while delivered < HISTORY {
        write(&output, 0, LIVE);
        delivered += drain(&output, first);
    }
    output.detach(first);
    assert_eq!(write(&output, 0, 10 * LIVE), LIVE);
    assert!(matches!(output.room(0), Room::None { until: Some(_) }));

    let again = OutputCursor { stdout: Some(delivered - HISTORY), ..Default::default() };
    let second = output.attach(&again).expect("attach");
    let Next::Event(Event::Output(piece)) = output.next(second) else { panic!("history is there") };
    assert_eq!(piece.sequence, delivered - HISTORY);
}

#[tokio::test(start_paused = true)]
async fn the_grace_ends() {
    let output = Output::plain(GRACE);
    let reader = output.attach(&OutputCursor::default()).expect("attach");
    write(&output, 0, LIVE);
    output.detach(reader);
    let Room::None { until: Some(until) } = output.room(0) else { panic!("held") };
    tokio::time::sleep_until(until).await;
    assert_eq!(write(&output, 0, 10 * LIVE), 10 * LIVE);
}

#[tokio::test(start_paused = true)]
async fn exited_comes_last_and_only_when_all_has_ended() {
    let output = Output::plain(GRACE);
    let reader = output.attach(&OutputCursor::default()).expect("attach");
    output.set_exit(Exit::Code(3));
    output.end(1);
    assert_eq!(output.next(reader), Next::Wait);
    write(&output, 0, 2);
    output.end(0);
    assert_eq!(drain(&output, reader), 2);
    assert_eq!(output.next(reader), Next::Exited(Exit::Code(3).to_event()));
    output.detach(reader);
    assert!(matches!(output.room(0), Room::Bytes(_)), "nothing is held for an ended output");
}

#[tokio::test(start_paused = true)]
async fn idle_is_who_says_nothing_to_nobody() {
    let output = Output::terminal(GRACE);
    let begun = Instant::now();
    let later = async || {
        tokio::time::advance(Duration::from_secs(1)).await;
        Instant::now()
    };
    later().await;
    assert_eq!(output.idle_since(), Some(begun));
    let written = later().await;
    write(&output, 0, 1);
    assert_eq!(output.idle_since(), Some(written));
    let reader = output.attach(&OutputCursor::default()).expect("attach");
    later().await;
    assert_eq!(output.idle_since(), None, "somebody reads");
    let left = later().await;
    output.detach(reader);
    later().await;
    assert_eq!(output.idle_since(), Some(left));
}

#[tokio::test(start_paused = true)]
async fn a_cursor_from_the_future_is_refused() {
    let output = Output::terminal(GRACE);
    let ahead = OutputCursor { pty: Some(1), ..Default::default() };
    assert!(matches!(output.attach(&ahead), Err(BeyondEnd { wanted: 1, written: 0 })));
    assert!(output.attach(&OutputCursor { stdout: Some(9), ..Default::default() }).is_ok());
}
